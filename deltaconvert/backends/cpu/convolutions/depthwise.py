"""Depthwise convolutions: sums over taps, a few pixels and vectors of channels at a time."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats, Floats3
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.rows.finish import Ending
from deltaconvert.backends.cpu.rows.reduction import PIXELS, Filtered
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.backends.cpu.rows.stencil import Stencil, reducer

_filtered = reducer(Filtered())


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


@loop
def filter_rows(task, pixels, new, worker):
    """Sum over taps."""
    _filtered(task.stencil, task.weight.ctypes.data, pixels, new)


FILTER = rowwise(Depthwise, filter_rows, PIXELS)
