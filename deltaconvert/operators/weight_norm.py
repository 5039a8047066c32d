"""Weights that are computed from other parameters: weight norm and spectral norm.

They do not depend on the frame, so they are constants of the graph: evaluated once, never a
node of a converted model. Both ways in which PyTorch spells them end here: parametrizations,
and the older hooks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled


@operator(rule="global")
def weight_norm(v: Tensor, g: Tensor, *, dim: int) -> Tensor:
    """Return ``g * v / |v|``, the norm over all dimensions but ``dim`` (-1: over all)."""
    return torch._weight_norm(v, g, dim)


@spelled(torch._weight_norm)
def _function(v, g, dim=0):
    return call(weight_norm, v, g, dim=dim)


@operator(rule="global")
def spectral_norm(weight: Tensor, u: Tensor, v: Tensor, *, dim: int) -> Tensor:
    """Divide by the largest singular value ``u W v``, W being the weight with ``dim`` first."""
    matrix = weight.movedim(dim, 0).flatten(1)
    return weight / torch.dot(u, torch.mv(matrix, v))
