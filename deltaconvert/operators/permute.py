"""Another order of the dimensions, where it is not undone again.

Between maps ``N x C x H x W`` and ``N x H x W x C`` it mostly disappears: see the passes
`find_selects` and `channels_first`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled

CHANNELS_LAST = (0, 2, 3, 1)  # of maps: from N x C x H x W
CHANNELS_FIRST = (0, 3, 1, 2)


@operator(rule="global", moves_only=True)
def permute(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Put dimension ``dims[i]`` at place ``i``."""
    return x.permute(dims)


@spelled(torch.permute, "permute")
def _function(input, *sizes, dims=None):
    dims = dims if dims is not None else sizes[0] if len(sizes) == 1 else sizes
    return call(permute, input, dims=tuple(dims))
