"""Depthwise convolutions: a loop over pixels and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat, floats
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.taps import list_taps, taps_of
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
        self.taps, self.channels, self.new = taps_of(source, footprint), source.channels, new
        self.weight = flat(weight)

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        out: np.ndarray = floats(self.new[worker], len(pixels), self.channels).numpy()
        filter_rows(self.taps, self.weight, pixels, out)
        return out


@loop
def filter_rows(taps, weight, pixels, out):
    """Sum weight times input over the taps of each pixel."""
    channels = out.shape[1]
    starts = np.empty(taps.rows.shape[1] * taps.cols.shape[1], np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        count = list_taps(taps, np.int64(pixels[i]), starts, places)
        for tap in range(count):
            places[tap] *= channels
        sum_taps(taps.data, weight, starts[:count], places[:count], out[i])


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
            row[c] += ((load(a, c) * u[c] + load(b, c) * v[c])
                       + (load(d, c) * w[c] + load(e, c) * z[c]))
        tap += 4
    while tap < taps:
        a = data[sources[tap]:sources[tap] + channels]
        u = weight[filters[tap]:filters[tap] + channels]
        for c in range(channels):
            row[c] += load(a, c) * u[c]
        tap += 1
