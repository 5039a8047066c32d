"""``x / y``, of maps, gates and numbers; also of shapes, before they are known."""

from __future__ import annotations

import operator as python

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled


@operator(pixelwise=True, channels_first=True)
def div(x: Tensor, y: Tensor, *, rounding_mode: str | None = None) -> Tensor:
    """Divide, broadcasting; rounded down (``"floor"``) or to zero (``"trunc"``), or not."""
    return x / y if rounding_mode is None else torch.div(x, y, rounding_mode=rounding_mode)


@spelled(python.truediv, python.itruediv, torch.div, torch.divide, torch.true_divide, "div",
         "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__div__",
         "__itruediv__")
def _function(input, other, *, rounding_mode=None):
    return call(div, input, other, rounding_mode=rounding_mode)


@spelled("__rtruediv__", "__rdiv__")
def _reversed(input, other):
    return call(div, other, input, rounding_mode=None)
