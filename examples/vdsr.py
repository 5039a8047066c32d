"""VDSR, a super-resolution network of twenty 3x3 convolutions at full resolution.

From "Accurate Image Super-Resolution Using Very Deep Convolutional Networks" (Kim et al.,
CVPR 2016). The submodule names are those of the weights published by Jiu Xu and Rakuten
(2017, MIT). Nothing in this file knows about deltaconvert.
"""

from torch import Tensor, nn


class ConvReLU(nn.Module):
    """3x3 convolution of 64 channels without a bias, then ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


class VDSR(nn.Module):
    """Sharpens an enlarged picture: `[N, 1, H, W]` luminance, 0..1, to the same shape.

    The network computes the detail that is missing and adds it to its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.residual_layer = nn.Sequential(*(ConvReLU() for _ in range(18)))
        self.output = nn.Conv2d(64, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        detail = self.residual_layer(self.relu(self.input(x)))
        return x + self.output(detail)
