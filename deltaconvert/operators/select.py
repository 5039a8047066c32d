"""Picking channels, rows and columns: slices, chunks, shuffles, crops and flips.

Spelled by nothing of its own: the compiler finds out that a chain of views only picks, once
shapes are known, and puts this in its place.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import Shapes, call, operator, spelled_module

Picks = tuple[int, ...] | None
MOST_INDICES = 4096  # of picks that are kept on their device


def _footprints(shapes: Shapes) -> list[Footprint]:
    height, width = shapes.size_in()
    rows, cols = shapes.params["rows"], shapes.params["cols"]
    return [gather((height, width), range(height) if rows is None else rows,
                   range(width) if cols is None else cols)]


def _channels(x: Tensor, *, channels: Picks, rows: Picks, cols: Picks) -> Tensor:
    return x if channels is None else _picked(x, 1, channels)


def _channels_first(x, *, channels, rows, cols):
    return call(select, x, channels=cols, rows=channels, cols=rows)


@operator(footprints=_footprints, pixelwise=_channels, moves_only=True,
          channels_first=_channels_first)
def select(x: Tensor, *, channels: Picks, rows: Picks, cols: Picks) -> Tensor:
    """Pick along channels, rows and columns; ``None`` takes all as they are."""
    for dim, picks in ((1, channels), (2, rows), (3, cols)):
        if picks is not None:
            x = _picked(x, dim, picks)
    return x


def _picked(x: Tensor, dim: int, picks: tuple[int, ...]) -> Tensor:
    # Where shapes alone are found out, what a call returns is no tensor to be kept.
    index = _index if _get_current_dispatch_mode() is None else _index.__wrapped__
    return x.index_select(dim, index(picks, x.device))


@functools.lru_cache(MOST_INDICES)
def _index(picks: tuple[int, ...], device: torch.device) -> Tensor:
    """Return picks on a device, copied there once: a copy from the host stops a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(picks, device=device)


@spelled_module(nn.ChannelShuffle)
def _module(module, attribute, input):
    """Call the function, which is a view like the others until shapes are known."""
    return call(torch.channel_shuffle, input, module.groups)
