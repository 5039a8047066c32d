"""Pose-ResNet: heat maps of body joints from a ResNet-50 and three deconvolutions.

The network of "Simple Baselines for Human Pose Estimation and Tracking" (Xiao et al.,
ECCV 2018), its trunk taken from torchvision. Nothing in this file knows about
deltaconvert.
"""

from torch import Tensor, nn
from torchvision.models import resnet50


def double_size(c_in: int, c_out: int) -> list[nn.Module]:
    """Transposed convolution that doubles H and W, BatchNorm, ReLU."""
    conv = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class PoseResNet(nn.Module):
    """`[N, 3, H, W]`, RGB, normalised as for ImageNet, to `[N, num_joints, H/4, W/4]`.

    H and W are multiples of 32. One heat map a joint, without an activation.
    """

    def __init__(self, num_joints: int = 17) -> None:
        super().__init__()
        # The last two children of torchvision's ResNet are the average pool and `fc`.
        self.trunk = nn.Sequential(*list(resnet50(weights=None).children())[:-2])
        self.deconv_layers = nn.Sequential(
            *double_size(2048, 256), *double_size(256, 256), *double_size(256, 256)
        )
        self.final_layer = nn.Conv2d(256, num_joints, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(self.trunk(x)))


def pose_resnet50(num_joints: int = 17) -> PoseResNet:
    """Pose-ResNet-50 with random weights; `num_joints` is 17 for COCO, 16 for MPII."""
    return PoseResNet(num_joints)
