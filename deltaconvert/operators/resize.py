"""Bilinear and bicubic resizing by any factor: weighted sums of a few pixels.

Its spellings are those of all resizing, in `interpolate`. Which pixels an output pixel reads,
and with which weights, is asked of PyTorch: it is what resizing does to single rows and
columns of ones. Corners, borders, antialiasing and rounding are then as there.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.footprint import Footprint
from deltaconvert.operators.registry import Shapes, operator
from deltaconvert.operators.resize_nearest import one_side

ROWS_AT_ONCE = 128  # so that tall maps do not need a square of their height in memory


def _footprints(shapes: Shapes) -> list[Footprint]:
    (rows, _), (cols, _) = (_taps(shapes, side) for side in (0, 1))
    return [Footprint(rows, cols, shapes.size_in())]


def _weights(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    return _taps(shapes, 0)[1], _taps(shapes, 1)[1]


def _taps(shapes: Shapes, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a side's taps, int32 ``[out, taps]``, and their weights, float32.

    A tap is one that counts in float32 or in float64: their coordinates are rounded apart.
    """
    size, out = shapes.size_in()[side], shapes.size_out[side]
    single, double = (_matrix(shapes, side, size, dtype)
                      for dtype in (torch.float32, torch.float64))
    keys = torch.unique(torch.cat([single.indices(), double.indices()], 1), dim=1)
    values = torch.zeros(keys.shape[1], dtype=torch.float32, device="cpu")
    where = torch.searchsorted(keys[0] * size + keys[1],
                               single.indices()[0] * size + single.indices()[1])
    values[where] = single.values()
    counts = torch.bincount(keys[0], minlength=out)
    place = torch.arange(keys.shape[1], device="cpu") - (counts.cumsum(0) - counts)[keys[0]]
    taps = np.full((out, int(counts.max())), -1, np.int32)
    weights = np.zeros(taps.shape, np.float32)
    at = keys[0].numpy(), place.numpy()
    taps[at], weights[at] = keys[1].numpy(), values.numpy()
    return taps, weights


def _matrix(shapes: Shapes, side: int, size: int, dtype: torch.dtype) -> Tensor:
    """Return what resizing a side multiplies with: sparse ``[out, size]``."""
    params = one_side(shapes.params, side)
    if side == 0:  # as columns too: see `_one_column`
        params |= {name: params[name] and params[name][::-1] for name in ("size", "scale_factor")}
    parts = []
    for first in range(0, size, ROWS_AT_ONCE):
        ones = torch.eye(size, dtype=dtype, device="cpu")[first:first + ROWS_AT_ONCE]
        parts.append(resize(ones[None, :, None, :], **params)[0, :, 0].to_sparse())
    return torch.cat(parts).t().coalesce()


def _one_column(shapes: Shapes) -> str | None:
    """Leave to PyTorch what it computes differently in different memory formats (2.14 does)."""
    wrong = shapes.params["antialias"] and shapes.size_out[1] == 1
    return "antialiasing to one column depends on PyTorch's memory format" if wrong else None


@operator(footprints=_footprints, weights=_weights, not_local=_one_column)
def resize(x: Tensor, *, size: tuple[int, int] | None, scale_factor: tuple[float, float] | None,
           mode: str, align_corners: bool, recompute_scale_factor: bool | None,
           antialias: bool) -> Tensor:
    """Resize with ``mode`` ``"bilinear"`` or ``"bicubic"``."""
    if antialias:  # one column of a channels-last map comes out otherwise (2.14)
        x = x.contiguous()
    if antialias and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        # There PyTorch antialiases in float32 alone.
        return F.interpolate(x.float(), size, scale_factor, mode, align_corners,
                             recompute_scale_factor, antialias).to(x.dtype)
    return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor,
                         antialias)
