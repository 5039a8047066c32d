"""``x - alpha * y``."""

from __future__ import annotations

import operator as python

import torch
from torch import Tensor

from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.registry import call, operator, spelled


@operator(pixelwise=True, channels_first=True, fuses=["activation"])
def sub(x: Tensor, y: Tensor, *, alpha: float = 1, activation: Activation | None = None) -> Tensor:
    """Subtract, broadcasting, and apply the activation."""
    return finish(x - y if alpha == 1 else x - alpha * y, None, activation)


@spelled(python.sub, python.isub, torch.sub, torch.subtract,
         "sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__")
def _function(input, other, *, alpha=1):
    return call(sub, input, other, alpha=alpha)


@spelled(torch.rsub, "__rsub__")
def _reversed(input, other, *, alpha=1):
    return call(sub, other, input, alpha=alpha)
