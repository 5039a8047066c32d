"""Nearest-neighbour resizing: every output pixel is one input pixel.

Its spellings are those of all resizing, in `interpolate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import Shapes, operator


def _footprints(shapes: Shapes) -> list[Footprint]:
    """Ask PyTorch itself which pixel it reads, so that its rounding is followed exactly."""
    height, width = shapes.size_in()
    params = shapes.params
    rows = resize_nearest(_ruler(height, 2), **one_side(params, 0))
    cols = resize_nearest(_ruler(width, 3), **one_side(params, 1))
    return [gather((height, width), rows.flatten().long().numpy(), cols.flatten().long().numpy())]


def _ruler(length: int, dim: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[dim] = length
    return torch.arange(length, dtype=torch.float64, device="cpu").view(shape)


def one_side(params: dict[str, Any], side: int) -> dict[str, Any]:
    """Return the settings of resizing the height alone (``side`` 0), or the width."""
    def only(pair: Sequence[float] | None, other: float) -> tuple[float, float] | None:
        return None if pair is None else (pair[0], other) if side == 0 else (other, pair[1])
    return {**params, "size": only(params["size"], 1),
            "scale_factor": only(params["scale_factor"], 1.0)}


def _same(x: Tensor, **params: object) -> Tensor:
    return x


@operator(footprints=_footprints, pixelwise=_same, moves_only=True)
def resize_nearest(x: Tensor, *, size: tuple[int, int] | None,
                   scale_factor: tuple[float, float] | None, exact: bool,
                   recompute_scale_factor: bool | None) -> Tensor:
    """Resize by repeating or dropping pixels."""
    return F.interpolate(x, size, scale_factor, "nearest-exact" if exact else "nearest",
                         recompute_scale_factor=recompute_scale_factor)
