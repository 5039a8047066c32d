"""Concatenation of maps along the channels."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.operators.registry import Shapes, call, operator, spelled
from deltaconvert.operators.softmax import over_channels_last


def _not_along_channels(shapes: Shapes) -> str | None:
    rank = len(shapes.output)
    if rank == 4 and shapes.params["dim"] % rank == 1:
        return None
    return "a concatenation along another dimension than the channels moves pixels"


@operator(pixelwise=True, not_local=_not_along_channels, moves_only=True,
          channels_first=lambda tensors, *, dim: call(cat, tensors, dim=over_channels_last(dim)))
def cat(tensors: list[Tensor], *, dim: int = 0) -> Tensor:
    """Join tensors along ``dim``."""
    return torch.cat(list(tensors), dim)


@spelled(torch.cat, torch.concat, torch.concatenate)
def _function(tensors, dim=0):
    return call(cat, tensors, dim=dim)
