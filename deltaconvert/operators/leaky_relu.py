"""``x`` where positive, else ``slope * x``: the slope is the call's own, in every frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, is_activation=True)
def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Rectify each number, leaking ``slope`` of what is negative."""
    return F.leaky_relu(x, slope)


@spelled(F.leaky_relu, F.leaky_relu_)
def _function(input, negative_slope=0.01, inplace=False):
    return call(leaky_relu, input, slope=float(negative_slope))


@spelled_module(nn.LeakyReLU)
def _module(module, attribute, input):
    return call(leaky_relu, input, slope=float(module.negative_slope))
