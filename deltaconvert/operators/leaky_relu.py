"""``x`` where positive, else ``slope * x``: the slope is the call's own, in every frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import Refusal, call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Rectify each number, leaking ``slope`` of what is negative."""
    return F.leaky_relu(x, slope)


@spelled(F.leaky_relu, F.leaky_relu_)
def _function(input, negative_slope=0.01, inplace=False):
    return call(leaky_relu, input, slope=float(negative_slope))


@spelled_module(nn.LeakyReLU)
def _module(module, attribute, input):
    return call(leaky_relu, input, slope=float(module.negative_slope))


@spelled(F.rrelu, torch.rrelu)
def _rrelu(input, lower=1 / 8, upper=1 / 3, training=False, inplace=False):
    """Take what a random slope is outside of training: the mean of its bounds."""
    if training:
        raise Refusal("a random slope that is active in eval mode")
    return call(leaky_relu, input, slope=(lower + upper) / 2)


@spelled_module(nn.RReLU)
def _rrelu_module(module, attribute, input):
    return _rrelu(input, module.lower, module.upper)
