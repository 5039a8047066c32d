"""Depthwise convolutions: a loop over pixels and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat, floats
from deltaconvert.footprint import Footprint

_ZERO = np.float32(0)


class Depthwise:
    """Computes rows of a depthwise convolution, transposed or not.

    Args:
        source: the map that is read.
        footprint: its taps.
        weight: float32 ``[taps, C]``.
        new: scratch for the rows, one a worker.
    """

    def __init__(self, source: FlatMap, footprint: Footprint, weight: Tensor,
                 new: Sequence[Tensor]) -> None:
        """Resolve the tables."""
        self.source, self.new = source, new
        self.weight = flat(weight)
        self.rows, self.cols = (
            np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        source = self.source
        out: np.ndarray = floats(self.new[worker], len(pixels), source.channels).numpy()
        filter_rows(source.data, source.step, source.height, source.width, self.weight, self.rows,
                    self.cols, pixels, out)
        return out


@loop
def filter_rows(data, step, height, width, weight, rows, cols, pixels,
                out):
    """Sum weight times input over the taps of each pixel."""
    channels = out.shape[1]
    height_out, width_out = rows.shape[0], cols.shape[0]
    sources = np.empty(rows.shape[1] * cols.shape[1], np.int64)
    filters = np.empty(rows.shape[1] * cols.shape[1], np.int64)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        x = pixel % width_out
        y = pixel // width_out % height_out
        first = pixel // (width_out * height_out) * height
        taps = 0
        for tap_y in range(rows.shape[1]):
            if rows[y, tap_y] < 0:
                continue
            line = (first + rows[y, tap_y]) * width
            for tap_x in range(cols.shape[1]):
                if cols[x, tap_x] >= 0:
                    sources[taps] = (line + cols[x, tap_x]) * step
                    filters[taps] = (tap_y * cols.shape[1] + tap_x) * channels
                    taps += 1
        sum_taps(data, weight, sources[:taps], filters[:taps], out[i])


@loop
def sum_taps(data, weight, sources, filters, row):
    """Write the sum over taps to a row; four taps a sweep, to touch the row less often."""
    channels = row.shape[0]
    taps = sources.shape[0]
    for c in range(channels):
        row[c] = _ZERO
    tap = 0
    while tap + 4 <= taps:
        a = data[sources[tap]:sources[tap] + channels]
        b = data[sources[tap + 1]:sources[tap + 1] + channels]
        d = data[sources[tap + 2]:sources[tap + 2] + channels]
        e = data[sources[tap + 3]:sources[tap + 3] + channels]
        u = weight[filters[tap]:filters[tap] + channels]
        v = weight[filters[tap + 1]:filters[tap + 1] + channels]
        w = weight[filters[tap + 2]:filters[tap + 2] + channels]
        z = weight[filters[tap + 3]:filters[tap + 3] + channels]
        for c in range(channels):
            row[c] += (a[c] * u[c] + b[c] * v[c]) + (d[c] * w[c] + e[c] * z[c])
        tap += 4
    while tap < taps:
        a = data[sources[tap]:sources[tap] + channels]
        u = weight[filters[tap]:filters[tap] + channels]
        for c in range(channels):
            row[c] += a[c] * u[c]
        tap += 1
