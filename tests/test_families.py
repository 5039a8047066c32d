"""One network of every family that video is run on: converts, agrees, and is local."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.fallbacks import fallbacks
from deltaconvert.summary import multiply_add_shares
from tests import families

# Of the multiply-adds: a classifier's matrix, and in Swin the attention within windows.
MOST_OUTSIDE = 0.03


def torchvision(name: str, **settings) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = pytest.importorskip("torchvision").models
        return models.get_model(name, weights=None, **settings)
    return make


def timm(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False)


FAMILIES = {
    "HRNet-W32": (timm("hrnet_w32"), 64),
    "DLA": (timm("dla34"), 64),
    "ConvNeXt V2": (timm("convnextv2_atto"), 96),
    "EfficientNet": (torchvision("efficientnet_b0"), 128),
    "ConvNeXt": (torchvision("convnext_tiny"), 96),
    "RegNet": (torchvision("regnet_y_400mf"), 96),
    "DenseNet": (torchvision("densenet121"), 64),
    "Inception v3": (torchvision("inception_v3", aux_logits=False, init_weights=False), 96),
    "DeepLabV3": (torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None), 96),
    "U-Net, transposed": (lambda: families.UNet(bilinear=False), 62),
    "U-Net, bilinear": (lambda: families.UNet(bilinear=True), 62),
    "YOLO": (families.Yolo, 64),
    "YOLO, anchor-free": (families.AnchorFreeYolo, 64),
    "Fast-SCNN": (families.FastSegmentation, 96),
    "super-resolution": (families.SuperResolution, 24),
    "BiFPN": (families.BiFpn, 64),
    "Swin": (torchvision("swin_t"), 112),
}
EXCEPTED = {"Swin": "window_attention"}


def as_trained(model: nn.Module) -> nn.Module:
    """Statistics as after training, and layer scales that do not hide what they scale."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith(("layer_scale", "gamma", "grn.weight", "grn.bias")):
            parameter.data.uniform_(0.1, 0.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_converts_agrees_and_is_local(name):
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model = as_trained(make())
    frame = torch.rand(1, 3, size, size + 32)
    delta = deltaconvert.convert(model, frame, strict=True)
    nodes = next(iter(delta._programs.values())).nodes
    shares = multiply_add_shares(nodes)
    told = "\n".join(map(str, fallbacks(nodes)))
    excepted = sum(n.dense_multiply_adds for n in nodes if n.about.operator is not None
                   and n.about.operator.name == EXCEPTED.get(name))
    total = sum(n.dense_multiply_adds for n in nodes)
    assert excepted / total < 0.05
    assert 1 - shares["local"] - excepted / total <= MOST_OUTSIDE, f"{shares}\n{told}"
    by_reference = [n.about.name for n in nodes if n.about.rule == "local"
                    and n.backend != "cpu" and not n.about.aliases]
    assert not by_reference
    for time in range(3):
        frame = frame.clone()
        frame[..., 8 + time:16 + time, 20:30] = torch.rand(1)
        for out, dense in zip(leaves(delta(frame)), leaves(model(frame)), strict=True):
            error = (out - dense).norm() / dense.norm()
            assert error < 1e-5, f"frame {time}: relative RMS {error:.2g}"


def leaves(value) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(value)
