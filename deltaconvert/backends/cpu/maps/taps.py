"""Which pixel of a map an output pixel reads, where it reads one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.compiling.native import Ints2, Numbers
from deltaconvert.backends.cpu.maps.flat import FlatMap
from deltaconvert.footprint import Footprint


class Taps(NamedTuple):
    """A map, and the taps of a footprint in it.

    Args:
        data, step, height, width: of the map, see `FlatMap`.
        rows, cols: int32 ``[H_out, taps_y]`` and ``[W_out, taps_x]``, or -1.
        same: whether each output pixel reads the one at its own place.
    """

    data: Numbers
    step: int
    height: int
    width: int
    rows: Ints2
    cols: Ints2
    same: bool


def taps_of(value: FlatMap, footprint: Footprint) -> Taps:
    """Resolve a map and a footprint."""
    rows, cols = (np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
    return Taps(value.data, value.step, value.height, value.width, rows, cols,
                footprint.is_identity)
