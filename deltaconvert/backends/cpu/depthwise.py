"""Depthwise convolutions: a loop over pixels and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from deltaconvert.backends.cpu.finish import Ending, finish_rows
from deltaconvert.backends.cpu.frame import Parts, take_pixels
from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.native import Entries, Floats, Floats3, layout, read
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.taps import Taps, list_taps

_ZERO = np.float32(0)


class Depthwise(NamedTuple):
    """A depthwise convolution, transposed or not.

    Args:
        parts, ending: of its step.
        taps: what a pixel reads.
        weight: float32, flat ``[taps, C]``.
        new: float32 ``[workers, rows, C]``.
    """

    parts: Parts
    ending: Ending
    taps: Taps
    weight: Floats
    new: Floats3


_DEPTHWISE, _DEPTHWISE16 = layout(Depthwise), layout(Depthwise, types.uint16)


@entry
def _filter(address, worker):
    filter_parts(read(address, _DEPTHWISE), worker)


@entry
def _filter16(address, worker):
    filter_parts(read(address, _DEPTHWISE16), worker)


FILTER = Entries(_filter, _filter16)


@loop
def filter_parts(task, worker):
    """Compute and finish parts until all are taken."""
    new = task.new[worker]
    while True:
        pixels = take_pixels(task.parts)
        if pixels.shape[0] == 0:
            return
        filter_rows(task.taps, task.weight, pixels, new)
        finish_rows(new, pixels, task.ending, worker)


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
