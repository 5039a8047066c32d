"""A matrix multiplication: behind a flattened map, or of the channels of ``N x H x W x C``.

The latter becomes a convolution of 1x1: see the pass `channels_first`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.registry import Shapes, call, operator, spelled, spelled_module


def _multiply_adds(shapes: Shapes) -> int:
    """Of a lane: every row of the batch element times the matrix."""
    rows = math.prod(shapes.output[1:-1])
    return rows * math.prod(shapes.constants["weight"])


def as_filter(weight: Tensor) -> Tensor:
    """Return a matrix as the filter of a convolution of 1x1."""
    return weight[:, :, None, None]


def _channels_first(x, weight, bias=None):
    return call(conv2d, x, call(as_filter, weight), bias, None, stride=(1, 1), padding=(0, 0),
                dilation=(1, 1), groups=1)


@operator(rule="global", multiply_adds=_multiply_adds, channels_first=_channels_first)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the last dimension by the matrix."""
    return F.linear(x, weight, bias)


@spelled(F.linear)
def _function(input, weight, bias=None):
    return call(linear, input, weight, bias)


@spelled_module(nn.Linear)
def _module(module, attribute, input):
    return call(linear, input, attribute("weight"), attribute("bias"))
