"""Depthwise convolutions: sums over taps, a few pixels and vectors of channels at a time."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from deltaconvert.backends.cpu.finish import Ending, finish_batch
from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.native import Entries, Floats, Floats3, layout, read
from deltaconvert.backends.cpu.parts import Parts, take_pixels
from deltaconvert.backends.cpu.reduction import PIXELS, Filtered
from deltaconvert.backends.cpu.stencil import FOUND, Stencil, reducer

filter_rows = reducer(Filtered())



class Depthwise(NamedTuple):
    """A depthwise convolution, transposed or not.

    Args:
        parts, ending: of its step.
        stencil: what a pixel reads.
        weight: float32, flat ``[taps, C]``.
        new: float32 ``[workers, rows, C]``, see `stencil.rows_with_room`.
    """

    parts: Parts
    ending: Ending
    stencil: Stencil
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
    batch = new.shape[0] - PIXELS
    runs = np.empty((batch, FOUND), np.int64)
    while True:
        taken = take_pixels(task.parts, worker)
        if taken.shape[0] == 0:
            return
        for first in range(0, taken.shape[0], batch):
            pixels = taken[first:first + batch]
            filter_rows(task.stencil, task.weight.ctypes.data, pixels, runs, new)
            finish_batch(new, taken, first, first + pixels.shape[0], task.ending, worker)
