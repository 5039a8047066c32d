"""Maps joined along a new dimension, where what follows does not make maps of it again."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled


@operator(rule="global", moves_only=True)
def stack(tensors: list[Tensor], *, dim: int) -> Tensor:
    """Join tensors along a new dimension ``dim``."""
    return torch.stack(list(tensors), dim)


@spelled(torch.stack)
def _function(tensors, dim=0, *, axis=None):
    return call(stack, tensors, dim=dim if axis is None else axis)
