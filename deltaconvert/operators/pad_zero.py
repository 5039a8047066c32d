"""Zero padding of maps, on any side, by any number of pixels; negative ones crop.

``F.pad`` is spelled in `pad`, which is every other padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import Refusal, Shapes, call, operator, spelled_module


def _footprints(shapes: Shapes) -> list[Footprint]:
    left, _, top, _ = shapes.params["padding"]
    size_in, size_out = shapes.size_in(), shapes.size_out
    tables: list[np.ndarray] = []
    for before, size, out in ((top, size_in[0], size_out[0]), (left, size_in[1], size_out[1])):
        index = np.arange(out) - before
        tables.append(np.where((index >= 0) & (index < size), index, -1))
    return [gather(size_in, tables[0], tables[1])]


def _channels_first(x: Any, *, padding: tuple[int, int, int, int]) -> Any:
    if any(padding[:2]):
        raise Refusal("padding of channels")
    return call(pad_zero, x, padding=(*padding[2:], 0, 0))


def _picked(x: Tensor, **params: object) -> Tensor:
    """Return what the footprint picked: the pixel, or zeros where there is none."""
    return x


@operator(footprints=_footprints, pixelwise=_picked, moves_only=True,
          channels_first=_channels_first)
def pad_zero(x: Tensor, *, padding: tuple[int, int, int, int]) -> Tensor:
    """Put ``(left, right, top, bottom)`` pixels of zero around a map."""
    return F.pad(x, padding)


@spelled_module(nn.ZeroPad2d)
def _module(module, attribute, input):
    return call(pad_zero, input, padding=tuple(module.padding))
