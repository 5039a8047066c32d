"""``x + alpha * y``, of maps, gates and numbers; also of shapes, before they are known."""

from __future__ import annotations

import operator as python

import torch
from torch import Tensor

from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.registry import call, operator, spelled


@operator(pixelwise=True, channels_first=True, fuses=["activation"])
def add(x: Tensor, y: Tensor, *, alpha: float = 1, activation: Activation | None = None) -> Tensor:
    """Add, broadcasting, and apply the activation."""
    return finish(x + y if alpha == 1 else x + alpha * y, None, activation)


@spelled(python.add, python.iadd, torch.add, "add", "add_", "__add__", "__iadd__", "__radd__")
def _function(input, other, *, alpha=1):
    return call(add, input, other, alpha=alpha)
