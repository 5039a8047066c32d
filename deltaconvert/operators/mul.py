"""``x * y``: maps, and the gates of squeeze-and-excitation (``[N, C, 1, 1]``)."""

from __future__ import annotations

import operator as python

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled


@operator(pixelwise=True, channels_first=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply, broadcasting."""
    return x * y


@spelled(python.mul, python.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply",
         "multiply_", "__mul__", "__imul__", "__rmul__")
def _function(input, other):
    return call(mul, input, other)
