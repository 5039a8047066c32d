"""Neighbourhoods of pixels, copied into rows for a function of them."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.maps.flat import FlatMap
from deltaconvert.backends.cpu.maps.storage import load, store
from deltaconvert.footprint import Footprint


class Gather:
    """Copies what the pixels of a footprint read.

    Args:
        source: the map that is read.
        footprint: its taps.
        missing: the number that stands for a tap outside the map.
    """

    def __init__(self, source: FlatMap, footprint: Footprint, missing: float = 0.0) -> None:
        """Keep the tables."""
        self.source, self.missing = source, np.float32(missing)
        self.rows, self.cols = (
            np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
        self.same = footprint.is_identity
        self.runs = side_by_side(self.cols, source)

    @property
    def width(self) -> int:
        """Numbers in a row: ``taps * channels``."""
        return self.rows.shape[1] * self.cols.shape[1] * self.source.channels

    def __call__(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Write row ``i`` for ``pixels[i]``.

        Args:
            pixels: int32 ``[M]``.
            out: float32 ``[M, width]``, in the order ``[taps_y, taps_x, channels]``.
        """
        source = self.source
        if self.same:
            gather_same(source.data, source.step, pixels, out)
        else:
            gather_taps(source.data, source.step, source.channels, source.height, source.width,
                        self.rows, self.cols, self.runs, self.missing, pixels, out)


def side_by_side(cols: np.ndarray, source: FlatMap) -> np.ndarray:
    """Return for which columns the taps of a line lie one behind the other; uint8 ``[W_out]``."""
    if source.step != source.channels or cols.shape[1] == 0:
        return np.zeros(cols.shape[0], np.uint8)
    run = (cols >= 0).all(1) & (np.diff(cols, axis=1) == 1).all(1)
    return run.astype(np.uint8)


@loop
def gather_same(data, step, pixels, out):
    """Copy each pixel itself."""
    channels = out.shape[1]
    for i in range(pixels.shape[0]):
        start = np.int64(pixels[i]) * step
        source = data[start:start + channels]
        row = out[i]
        for c in range(channels):
            row[c] = load(source, c)


@loop
def gather_taps(data, step, channels, height, width, rows, cols, runs, missing, pixels, out):
    """Copy each pixel's taps, in order."""
    height_out, width_out = rows.shape[0], cols.shape[0]
    taps_x = cols.shape[1]
    line = taps_x * channels
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        x = pixel % width_out
        y = pixel // width_out % height_out
        first = pixel // (width_out * height_out) * height
        for tap in range(rows.shape[1]):
            target = out[i, tap * line:(tap + 1) * line]
            source_y = rows[y, tap]
            if source_y < 0:
                fill(target, missing)
            elif runs[x] != 0:
                start = ((first + source_y) * width + cols[x, 0]) * step
                copy(target, data[start:start + line])
            else:
                for tap_x in range(taps_x):
                    part = target[tap_x * channels:(tap_x + 1) * channels]
                    if cols[x, tap_x] < 0:
                        fill(part, missing)
                    else:
                        start = ((first + source_y) * width + cols[x, tap_x]) * step
                        copy(part, data[start:start + channels])


@loop
def copy(target, source):
    """Copy a run of numbers, from whatever holds them to whatever shall."""
    for c in range(target.shape[0]):
        store(target, c, load(source, c))


@loop
def fill(target, number):
    """Put one number all along a run."""
    for c in range(target.shape[0]):
        store(target, c, number)
