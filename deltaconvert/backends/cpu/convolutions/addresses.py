"""Where the rows of a product lie: an address for every tap of every candidate.

Most taps of most pixels are so many channels side by side in the map, and are read where they
are. A tap outside the map is read from a row of zeros.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Bytes, Ints2, Numbers
from deltaconvert.backends.cpu.compiling.vectors import BLOCK
from deltaconvert.backends.cpu.maps.flat import FlatMap
from deltaconvert.backends.cpu.maps.gather import copy, fill, side_by_side
from deltaconvert.footprint import Footprint

_ZERO = np.float32(0)


class Source(NamedTuple):
    """A map, and which of its pixels an output pixel reads.

    Args:
        data, step, height, width: of the map, see `FlatMap`.
        rows, cols: int32 ``[H_out, taps_y]`` and ``[W_out, taps_x]``, or -1.
        runs: uint8 ``[W_out]``: the taps of a line lie side by side.
        lines: a segment is a line of taps; else a single tap.
        channels: that a tap reads.
        zeros: of the map's type, as long as a segment.
        same: each output pixel reads the one at its own place.
    """

    data: Numbers
    step: int
    height: int
    width: int
    rows: Ints2
    cols: Ints2
    runs: Bytes
    lines: bool
    channels: int
    zeros: Numbers
    same: bool


def source_of(value: FlatMap, footprint: Footprint, taps: tuple[np.ndarray, np.ndarray],
              lines: bool) -> Source:
    """Resolve a map and the taps of a footprint (all of them, or those of a phase)."""
    rows, cols = (np.ascontiguousarray(table[:, chosen], np.int32) for table, chosen in
                  zip((footprint.rows, footprint.cols), taps, strict=True))
    longest = max(cols.shape[1], 1) * value.channels if lines else value.channels
    return Source(value.data, value.step, value.height, value.width, rows, cols,
                  side_by_side(cols, value), lines, value.channels,
                  np.zeros(longest, value.data.dtype), not lines and footprint.is_identity)


@loop
def find_rows(source, pixels, copies, addresses):
    """Write the addresses of the rows of some pixels.

    Args:
        source: a `Source`.
        pixels: int32 ``[M]``, ascending.
        copies: of the map's type, ``[M, numbers]``: for lines of taps that have to be copied.
        addresses: int64 ``[blocks, segments, BLOCK]``; behind the last row, those of zeros.
    """
    if source.same:
        base, pixel = source.data.ctypes.data, source.data.itemsize * source.step
        for i in range(pixels.shape[0]):
            addresses[i // BLOCK, 0, i % BLOCK] = base + pixel * np.int64(pixels[i])
    elif source.lines:
        _find_lines(source, pixels, copies, addresses)
    else:
        _find_taps(source, pixels, addresses)
    count = pixels.shape[0]
    if count % BLOCK != 0:
        for segment in range(addresses.shape[1]):
            for row in range(count % BLOCK, BLOCK):
                addresses[count // BLOCK, segment, row] = source.zeros.ctypes.data


@loop
def _find_taps(source, pixels, addresses):
    height_out, width_out = source.rows.shape[0], source.cols.shape[0]
    base, nothing = source.data.ctypes.data, source.zeros.ctypes.data
    taps_x, size = source.cols.shape[1], source.data.itemsize
    start, y, first = np.int64(-width_out), 0, 0  # of a line: its pixel, row and lane's first row
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        if pixel < start or pixel >= start + width_out:  # rarely: division is slow
            line = pixel // width_out
            start, y = line * width_out, line % height_out
            first = line // height_out * source.height
        x = pixel - start
        block, row = i // BLOCK, i % BLOCK
        for tap_y in range(source.rows.shape[1]):
            tapped = source.rows[y, tap_y]
            for tap_x in range(taps_x):
                column = source.cols[x, tap_x]
                where = nothing
                if tapped >= 0 and column >= 0:
                    where = base + size * source.step * ((first + tapped) * source.width + column)
                addresses[block, tap_y * taps_x + tap_x, row] = where


@loop
def _find_lines(source, pixels, copies, addresses):
    height_out, width_out = source.rows.shape[0], source.cols.shape[0]
    base, nothing = source.data.ctypes.data, source.zeros.ctypes.data
    channels, taps_x = source.channels, source.cols.shape[1]
    numbers, size = taps_x * channels, source.data.itemsize
    start, y, first = np.int64(-width_out), 0, 0  # as above
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        if pixel < start or pixel >= start + width_out:
            line = pixel // width_out
            start, y = line * width_out, line % height_out
            first = line // height_out * source.height
        x = pixel - start
        for tap_y in range(source.rows.shape[1]):
            where = nothing
            if source.rows[y, tap_y] >= 0:
                tapped = (first + source.rows[y, tap_y]) * source.width
                if source.runs[x] != 0:
                    where = base + size * source.step * (tapped + source.cols[x, 0])
                else:
                    copied = copies[i][tap_y * numbers:(tap_y + 1) * numbers]
                    _copy_line(source, tapped, x, copied)
                    where = copied.ctypes.data
            addresses[i // BLOCK, tap_y, i % BLOCK] = where


@loop
def _copy_line(source, line, x, copied):
    channels = source.channels
    for tap_x in range(source.cols.shape[1]):
        part = copied[tap_x * channels:(tap_x + 1) * channels]
        if source.cols[x, tap_x] < 0:
            fill(part, _ZERO)
        else:
            start = (line + source.cols[x, tap_x]) * source.step
            copy(part, source.data[start:start + channels])
