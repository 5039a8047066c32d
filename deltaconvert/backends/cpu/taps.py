"""Which numbers of a map a pixel reads: one loop over taps, for all that sum or compare them."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap
from deltaconvert.backends.cpu.native import Ints2, Numbers
from deltaconvert.footprint import Footprint


class Taps(NamedTuple):
    """A map, and the taps of a footprint in it.

    Args:
        data, step, height, width: of the map, see `FlatMap`.
        rows, cols: int32 ``[H_out, taps_y]`` and ``[W_out, taps_x]``, or -1.
    """

    data: Numbers
    step: int
    height: int
    width: int
    rows: Ints2
    cols: Ints2


def taps_of(value: FlatMap, footprint: Footprint) -> Taps:
    """Resolve a map and a footprint."""
    rows, cols = (np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
    return Taps(value.data, value.step, value.height, value.width, rows, cols)


@loop
def list_taps(taps, pixel, starts, places):
    """List the taps of a pixel that lie in the map; return how many there are.

    Args:
        taps: a `Taps`.
        pixel: flat index over all lanes.
        starts: int64 ``[taps_y * taps_x]``, written: where the numbers of each lie.
        places: likewise: the index of each among all taps, ``tap_y * taps_x + tap_x``.
    """
    height_out, width_out, taps_x = taps.rows.shape[0], taps.cols.shape[0], taps.cols.shape[1]
    x = pixel % width_out
    y = pixel // width_out % height_out
    first = pixel // (width_out * height_out) * taps.height
    count = 0
    for tap_y in range(taps.rows.shape[1]):
        row = taps.rows[y, tap_y]
        if row < 0:
            continue
        line = (first + row) * taps.width
        for tap_x in range(taps_x):
            column = taps.cols[x, tap_x]
            if column >= 0:
                starts[count] = (line + column) * taps.step
                places[count] = tap_y * taps_x + tap_x
                count += 1
    return count
