"""Zero padding of maps, on any side, by any number of pixels; negative ones crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import (
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)


def _footprints(shapes: Shapes) -> list[Footprint]:
    left, _, top, _ = shapes.params["padding"]
    size_in, size_out = shapes.size_in(), shapes.size_out
    tables: list[np.ndarray] = []
    for before, size, out in ((top, size_in[0], size_out[0]), (left, size_in[1], size_out[1])):
        index = np.arange(out) - before
        tables.append(np.where((index >= 0) & (index < size), index, -1))
    return [gather(size_in, tables[0], tables[1])]


def _picked(x: Tensor, **params: object) -> Tensor:
    """Return what the footprint picked: the pixel, or zeros where there is none."""
    return x


@operator(footprints=_footprints, pixelwise=_picked, moves_only=True)
def pad_zero(x: Tensor, *, padding: tuple[int, int, int, int]) -> Tensor:
    """Put ``(left, right, top, bottom)`` pixels of zero around a map."""
    return F.pad(x, padding)


def _padding(pad: Sequence[int]) -> tuple[int, ...]:
    """Fill up to four sides; a number that follows from shapes is still a node of the graph."""
    if not isinstance(pad, (tuple, list)) or len(pad) not in (2, 4):
        raise Refusal(f"padding by {pad} is not of rows and columns alone")
    return (*pad, *(0,) * (4 - len(pad)))


@spelled(F.pad)
def _function(input, pad, mode="constant", value=None):
    if mode != "constant" or value not in (None, 0):
        raise Refusal(f"padding with mode={mode!r}, value={value!r} is not zero padding")
    return call(pad_zero, input, padding=_padding(pad))


@spelled_module(nn.ZeroPad2d)
def _module(module, attribute, input):
    return call(pad_zero, input, padding=_padding(module.padding))
