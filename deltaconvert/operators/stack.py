"""Maps joined along a new dimension, where what follows does not make maps of it again.

A sum, mean or extreme along that dimension does: it is that of two maps, again and again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.operators.registry import call, operator, spelled


@operator(rule="global", moves_only=True)
def stack(tensors: list[Tensor], *, dim: int) -> Tensor:
    """Join tensors along a new dimension ``dim``."""
    return torch.stack(list(tensors), dim)


@spelled(torch.stack)
def _function(tensors, dim=0):
    return call(stack, tensors, dim=dim)


def stacked(input: Any, dims: tuple[int, ...], keepdim: bool) -> list[Any]:
    """Return the maps that were stacked along the one dimension that is reduced, if so."""
    if not isinstance(input, fx.Node) or input.target is not stack or keepdim:
        return []
    maps: Any = input.args[0]
    one = dims == (input.kwargs["dim"],) and isinstance(maps, (list, tuple))
    return list(maps) if one else []
