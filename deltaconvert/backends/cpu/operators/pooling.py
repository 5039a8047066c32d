"""Pooling: a loop over candidates and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Entries, Floats2, Floats3
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of, list_scratch
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, row_scratch
from deltaconvert.backends.cpu.maps.flat import flat_map, rows_of
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.reduction import PIXELS, Largest, Summed
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.backends.cpu.rows.stencil import (
    Stencil,
    reducer,
    rows_with_room,
    stencil_of,
)
from deltaconvert.backends.divisors import divisors_of
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Description, Slot

_maxima, _sums = reducer(Largest()), reducer(Summed())


def refusal(node: DeltaNode) -> str | None:
    """Return why this pooling must run elsewhere."""
    one = len(node.about.inputs) == 1 and isinstance(node.about.args[0], Slot)
    return None if one else "it is of something else than one map"


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and the rows of a batch."""
    shape = node.about.output.shape
    assert shape is not None
    return [*list_scratch(node), row_scratch("new", rows_with_room(shape[1]), shape[1], workers)]


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a pooling."""
    about = node.about
    source, footprint = flat_map(buffers.inputs[0].value), about.footprints[0]
    row_ns = 0.03 * source.channels * footprint.taps[0] * footprint.taps[1] + 20
    head = head_of(node, buffers, engine, row_ns, len(source.data))
    work, tables = _loop_of(about, footprint)
    rows_table, cols_table = (np.array(t, np.float32, order="C") for t in tables)
    new = rows_of(buffers.scratch["cpu.new"], engine.workers.threads,
                  rows_with_room(source.channels), source.channels)
    task = Pooling(head.parts, ending_of(node, buffers, head, engine),
                   stencil_of(source, footprint), rows_table, cols_table, new)
    return CompiledStep(node, engine, head, work.of(source.data), task)


def _loop_of(about: Description, footprint: Footprint) -> tuple[Entries, tuple[np.ndarray, ...]]:
    """Return what computes a node, and the two tables that it takes beside the taps."""
    operator = about.operator
    assert operator is not None
    if "max" in operator.name:
        return MAX, (np.zeros((1, 1)), np.zeros((1, 1)))
    rows, cols = divisors_of(about, footprint)
    return MEAN, (rows[:, None], cols[:, None])


class Pooling(NamedTuple):
    """A pooling.

    Args:
        parts, ending: of its step.
        stencil: what a pixel reads.
        rows, cols: float32 ``[H_out, ...]`` and ``[W_out, ...]``: divisors, of means.
        new: float32 ``[workers, rows, C]``, see `stencil.rows_with_room`.
    """

    parts: Parts
    ending: Ending
    stencil: Stencil
    rows: Floats2
    cols: Floats2
    new: Floats3


@loop
def max_rows(task, pixels, new, worker):
    """Take the maximum over taps."""
    _maxima(task.stencil, 0, pixels, new)


@loop
def mean_rows(task, pixels, new, worker):
    """Sum over taps and divide."""
    _sums(task.stencil, 0, pixels, new)
    height, width = task.rows.shape[0], task.cols.shape[0]
    for i in range(pixels.shape[0]):
        pixel, row = np.int64(pixels[i]), new[i]
        divisor = task.rows[pixel // width % height, 0] * task.cols[pixel % width, 0]
        for c in range(row.shape[0]):
            row[c] = row[c] / divisor


MAX, MEAN = rowwise(Pooling, max_rows, PIXELS), rowwise(Pooling, mean_rows, PIXELS)
