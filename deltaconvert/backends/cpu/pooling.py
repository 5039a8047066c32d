"""Pooling and resizing: a loop over candidates and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.engine import Engine
from deltaconvert.backends.cpu.finish import Ending, ending_of, finish_rows
from deltaconvert.backends.cpu.frame import Parts, take_pixels
from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.maps import flat_map, rows_of
from deltaconvert.backends.cpu.native import Entries, Floats2, Floats3, layout, read
from deltaconvert.backends.cpu.rows import head_of, list_scratch
from deltaconvert.backends.cpu.steps import CompiledStep, chunk_rows, row_scratch
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.taps import Taps, list_taps, taps_of
from deltaconvert.backends.divisors import divisors_of
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Description, Slot

_ZERO = np.float32(0)
_LOWEST = np.float32(-np.inf)


def refusal(node: DeltaNode) -> str | None:
    """Return why this pooling or resizing must run elsewhere."""
    one = len(node.about.inputs) == 1 and isinstance(node.about.args[0], Slot)
    return None if one else "it is of something else than one map"


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and the rows of a chunk."""
    shape = node.about.output.shape
    assert shape is not None
    return [*list_scratch(node), row_scratch("new", chunk_rows(shape[1]), shape[1], workers)]


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a pooling or a resizing."""
    about = node.about
    source, footprint = flat_map(buffers.inputs[0].value), about.footprints[0]
    rows = chunk_rows(source.channels)
    row_ns = 0.1 * source.channels * footprint.taps[0] * footprint.taps[1] + 20
    head = head_of(node, buffers, engine, row_ns, rows)
    work, tables = _loop_of(about, footprint)
    rows_table, cols_table = (np.array(t, np.float32, order="C") for t in tables)
    new = rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows, source.channels)
    task = Pooling(head.parts, ending_of(node, buffers, head, engine), taps_of(source, footprint),
                   rows_table, cols_table, new)
    return CompiledStep(node, engine, head, work.of(source.data), task)


def _loop_of(about: Description, footprint: Footprint) -> tuple[Entries, tuple[np.ndarray, ...]]:
    """Return what computes a node, and the two tables that it takes beside the taps."""
    operator = about.operator
    assert operator is not None
    if operator.weights is not None:
        assert about.shapes is not None
        return WEIGH, operator.weights(about.shapes)
    if "max" in operator.name:
        return MAX, (np.zeros((1, 1)), np.zeros((1, 1)))
    rows, cols = divisors_of(about, footprint)
    return MEAN, (rows[:, None], cols[:, None])


class Pooling(NamedTuple):
    """A pooling or a resizing.

    Args:
        parts, ending: of its step.
        taps: what a pixel reads.
        rows, cols: float32 ``[H_out, ...]`` and ``[W_out, ...]``: weights of the taps, or
            divisors.
        new: float32 ``[workers, rows, C]``.
    """

    parts: Parts
    ending: Ending
    taps: Taps
    rows: Floats2
    cols: Floats2
    new: Floats3


_POOLING, _POOLING16 = layout(Pooling), layout(Pooling, types.uint16)


@entry
def _max(address, worker):
    max_parts(read(address, _POOLING), worker)


@entry
def _max16(address, worker):
    max_parts(read(address, _POOLING16), worker)


@loop
def max_parts(task, worker):
    """Compute and finish maxima until all parts are taken."""
    new = task.new[worker]
    while True:
        pixels = take_pixels(task.parts)
        if pixels.shape[0] == 0:
            return
        max_rows(task.taps, pixels, new)
        finish_rows(new, pixels, task.ending, worker)


@entry
def _mean(address, worker):
    mean_parts(read(address, _POOLING), worker)


@entry
def _mean16(address, worker):
    mean_parts(read(address, _POOLING16), worker)


@loop
def mean_parts(task, worker):
    """The same for means."""
    new = task.new[worker]
    while True:
        pixels = take_pixels(task.parts)
        if pixels.shape[0] == 0:
            return
        mean_rows(task.taps, task.rows, task.cols, pixels, new)
        finish_rows(new, pixels, task.ending, worker)


@entry
def _weigh(address, worker):
    weigh_parts(read(address, _POOLING), worker)


@entry
def _weigh16(address, worker):
    weigh_parts(read(address, _POOLING16), worker)


@loop
def weigh_parts(task, worker):
    """The same for weighted sums."""
    new = task.new[worker]
    while True:
        pixels = take_pixels(task.parts)
        if pixels.shape[0] == 0:
            return
        weighted_rows(task.taps, task.rows, task.cols, pixels, new)
        finish_rows(new, pixels, task.ending, worker)


MAX, MEAN, WEIGH = Entries(_max, _max16), Entries(_mean, _mean16), Entries(_weigh, _weigh16)


@loop
def max_rows(taps, pixels, out):
    """Take the maximum over taps; once NaN, it stays NaN, as in PyTorch."""
    channels = out.shape[1]
    starts = np.empty(taps.rows.shape[1] * taps.cols.shape[1], np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        row = out[i]
        row[:] = _LOWEST
        for tap in range(list_taps(taps, np.int64(pixels[i]), starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            for c in range(channels):
                v = load(source, c)
                row[c] = v if v > row[c] or v != v else row[c]


@loop
def mean_rows(taps, row_divisors, col_divisors, pixels, out):
    """Sum over taps and divide."""
    channels = out.shape[1]
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    starts = np.empty(taps.rows.shape[1] * taps.cols.shape[1], np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = out[i]
        row[:] = _ZERO
        for tap in range(list_taps(taps, pixel, starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            for c in range(channels):
                row[c] += load(source, c)
        divisor = (row_divisors[pixel // width_out % height_out, 0]
                   * col_divisors[pixel % width_out, 0])
        for c in range(channels):
            row[c] = row[c] / divisor


@loop
def weighted_rows(taps, row_weights, col_weights, pixels, out):
    """Sum weight times input over taps; a tap's weight is its row's times its column's."""
    channels, taps_x = out.shape[1], taps.cols.shape[1]
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    starts = np.empty(taps.rows.shape[1] * taps_x, np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        y, x = pixel // width_out % height_out, pixel % width_out
        row = out[i]
        row[:] = _ZERO
        for tap in range(list_taps(taps, pixel, starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            weight = row_weights[y, places[tap] // taps_x] * col_weights[x, places[tap] % taps_x]
            for c in range(channels):
                row[c] += weight * load(source, c)
