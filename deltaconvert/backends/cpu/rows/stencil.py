"""Sums and maxima over taps, channel by channel: depthwise convolutions and pooling.

Which taps a pixel has, relative to the first of them, is the same for nearly all pixels; there
are as many *kinds* of rows and of columns as the borders and the phases make. So a pixel is an
address and two kinds, and neighbours of one kind are computed together, by the kernels of
`reduction`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Longs, Longs2, Longs3, Numbers
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.maps.flat import FlatMap
from deltaconvert.backends.cpu.rows.reduction import MIDDLE, PIXELS, WIDE, kernels
from deltaconvert.footprint import Footprint

# Of a run: addresses of its pixels, the kinds of their row and columns, and how many they are.
ROW, COLUMN, COUNT, FOUND = range(PIXELS, PIXELS + 4)
# Numbers of new rows that are computed before they are finished: so few that they stay in the
# second cache, and so many that what one group of channels takes of filters and map is read from
# the first cache by all of them.
_BATCH, _MOST_ROWS = 16384, 256


class Stencil(NamedTuple):
    """A map, and the taps of a footprint in it.

    Args:
        data: of the map.
        lane: bytes from a lane to the next.
        rows: int64 ``[H_out, 2]``: bytes from a lane's beginning to the topmost row that an output
            row reads, and the kind of the output row.
        cols: int64 ``[W_out, 2]``: likewise, bytes from a row's beginning.
        row_taps: int64 ``[kinds, 2, taps_y]``: of the taps that exist, bytes from the topmost,
            and the tap's index times ``row_place``.
        col_taps: int64 ``[kinds, 2, taps_x]``, likewise.
        row_counts, col_counts: int64 ``[kinds]``: how many exist.
    """

    data: Numbers
    lane: int
    rows: Longs2
    cols: Longs2
    row_taps: Longs3
    col_taps: Longs3
    row_counts: Longs
    col_counts: Longs


def stencil_of(value: FlatMap, footprint: Footprint, row_place: int = 4,
               col_place: int = 4) -> Stencil:
    """Resolve a map and a footprint.

    Args:
        value, footprint: which map, and what is read of it.
        row_place, col_place: bytes from what belongs to a row or a column of taps to what
            belongs to the next.
    """
    pixel = value.data.itemsize * value.step
    rows, row_taps, row_counts = _kinds(footprint.rows, pixel * value.width, row_place)
    cols, col_taps, col_counts = _kinds(footprint.cols, pixel, col_place)
    return Stencil(value.data, pixel * value.pixels, rows, cols, row_taps, col_taps, row_counts,
                   col_counts)


def _kinds(table: np.ndarray, distance: int, place: int
           ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return a side's firsts and kinds, the taps of the kinds, and how many these have."""
    exists = table >= 0
    first = np.where(exists, table, np.iinfo(np.int32).max).min(1, initial=np.iinfo(np.int32).max)
    first = np.where(exists.any(1), first, 0)
    patterns, kinds = np.unique(np.where(exists, table - first[:, None], -1), axis=0,
                                return_inverse=True)
    taps = np.zeros((len(patterns), 2, table.shape[1]), np.int64)
    counts = np.zeros(len(patterns), np.int64)
    for kind, pattern in enumerate(patterns):
        there = np.flatnonzero(pattern >= 0)
        counts[kind] = len(there)
        taps[kind, :, :len(there)] = pattern[there] * distance, there * place
    starts = np.stack((first.astype(np.int64) * distance, kinds.reshape(-1).astype(np.int64)), 1)
    return np.ascontiguousarray(starts), taps, counts


def rows_with_room(channels: int) -> int:
    """Return for how many new rows there must be memory: a block may reach beyond the last."""
    rows = max(_BATCH // channels // PIXELS, 4) * PIXELS
    return min(rows, _MOST_ROWS) + PIXELS


@loop
def find_runs(stencil, pixels, runs):
    """Find pixels of one kind that are neighbours in a line; return how many runs these are.

    Args:
        stencil: a `Stencil`.
        pixels: int32, ascending.
        runs: int64 ``[pixels, FOUND]``, written: the addresses of `PIXELS` pixels (the last one's
            again, where there are fewer), and what is said of `ROW` to `COUNT`.
    """
    height, width = stencil.rows.shape[0], stencil.cols.shape[0]
    data, rows, cols = stencil.data.ctypes.data, stencil.rows, stencil.cols
    i, total = 0, pixels.shape[0]
    found = 0
    while i < total:
        pixel = np.int64(pixels[i])
        line = pixel // width
        lane, x = line // height, pixel - line * width
        y = line - lane * height
        start = data + lane * stencil.lane + rows[y, 0]
        while True:  # what is left of the line
            run = runs[found]
            kind = cols[x, 1]
            run[0], count = start + cols[x, 0], 1
            most = min(PIXELS, total - i)
            other = x
            while count < most:
                other = x + np.int64(pixels[i + count]) - pixel
                if other >= width or cols[other, 1] != kind:
                    break
                run[count] = start + cols[other, 0]
                count += 1
            for missing in range(count, PIXELS):
                run[missing] = run[count - 1]
            run[ROW], run[COLUMN], run[COUNT] = rows[y, 1], kind, count
            found += 1
            i += count
            if i >= total or line * width + width <= pixels[i]:
                break
            x += np.int64(pixels[i]) - pixel
            pixel = np.int64(pixels[i])
    return found


def reducer(operation: Any) -> Any:
    """Make ``reduce(stencil, filter, pixels, out)`` of an operation, for compiled code.

    It computes a row of ``out``, float32 ``[rows, C]``, for each of the pixels, a group of channels
    after the other. ``filter`` is an address.
    """
    some, one = kernels(PIXELS, operation), kernels(1, operation)

    @register_jitable
    def reduce_group(vectors, stencil, filter, runs, first, out):
        channels, row, step = out.shape[1], out.ctypes.data, 4 * out.shape[1]
        room_y, room_x = stencil.row_taps.shape[2], stencil.col_taps.shape[2]
        for r in range(runs.shape[0]):
            run, count, kind_y, kind_x = runs[r], runs[r, COUNT], runs[r, ROW], runs[r, COLUMN]
            rows, cols = stencil.row_taps[kind_y].ctypes.data, stencil.col_taps[kind_x].ctypes.data
            taps_y, taps_x = stencil.row_counts[kind_y], stencil.col_counts[kind_x]
            if count > 2:
                some(vectors, stencil.data, run.ctypes.data, rows, taps_y, room_y, cols, taps_x,
                     room_x, filter, channels, first, row, step)
            else:
                for k in range(count):
                    one(vectors, stencil.data, run.ctypes.data + 8 * k, rows, taps_y, room_y, cols,
                        taps_x, room_x, filter, channels, first, row + k * step, step)
            row += count * step

    @register_jitable
    def reduce(stencil, filter, pixels, out):
        runs = np.empty((pixels.shape[0], FOUND), np.int64)
        found, channels, first = find_runs(stencil, pixels, runs), out.shape[1], 0
        while first < channels:
            left, vectors = channels - first, 1
            if left > MIDDLE * WIDTH and channels >= WIDE * WIDTH:
                vectors, first = WIDE, min(first, channels - WIDE * WIDTH)  # some once more
            elif left > WIDTH:
                vectors = MIDDLE
            reduce_group(vectors, stencil, filter, runs[:found], first, out)
            first += vectors * WIDTH

    return reduce
