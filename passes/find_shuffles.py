"""Find shuffles: views that put pixels into channels, or channels into pixels.

Before: ``x.view(n, c, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, h * r, w * r)``.
After: ``pixel_shuffle(x, factor=r)``, behind a `select` where the channels are in another order.

Part of `find_selects`, and by the same test: what comes out of 0, 1, 2, ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.operators.pixel_shuffle import pixel_shuffle
from deltaconvert.operators.pixel_unshuffle import pixel_unshuffle
from deltaconvert.operators.select import select

Steps = list[tuple[Any, dict[str, Any]]]


def shuffle_steps(moved: Tensor, shape: torch.Size) -> Steps | None:
    """Return the calls that lead from 0, 1, 2, ... in ``shape`` to these numbers, if any."""
    (lanes, _, height, width), (rows, cols) = shape, moved.shape[2:]
    if moved.shape[0] != lanes or moved.numel() != shape.numel():
        return None
    numbers = torch.arange(moved.numel(), device="cpu").view(shape)
    up, down = rows // height, height // rows
    if up > 1 and (rows, cols) == (up * height, up * width):
        return _shuffled(moved, numbers, up)
    if down > 1 and (height, width) == (down * rows, down * cols):
        return _unshuffled(moved, numbers, down)
    return None


def _shuffled(moved: Tensor, numbers: Tensor, factor: int) -> Steps | None:
    pixels = numbers.shape[2] * numbers.shape[3]
    order = (moved[0, :, :factor, :factor] // pixels).flatten()
    if int(order.max()) >= numbers.shape[1] or not torch.equal(
            F.pixel_shuffle(numbers[:, order], factor), moved):
        return None
    return [*_in_order(order), (pixel_shuffle, {"factor": factor})]


def _unshuffled(moved: Tensor, numbers: Tensor, factor: int) -> Steps | None:
    squares = F.pixel_unshuffle(numbers, factor)
    place = {int(number): c for c, number in enumerate(squares[0, :, 0, 0])}
    order = torch.tensor([place.get(int(number), -1) for number in moved[0, :, 0, 0]],
                         device="cpu")
    if int(order.min()) < 0 or not torch.equal(squares[:, order], moved):
        return None
    return [(pixel_unshuffle, {"factor": factor}), *_in_order(order)]


def _in_order(order: Tensor) -> Steps:
    if torch.equal(order, torch.arange(len(order), device="cpu")):
        return []
    return [(select, {"channels": tuple(order.tolist()), "rows": None, "cols": None})]
