"""Bilinear and bicubic resizing: rows are summed first, then columns.

The rows that a line of candidates reads are summed once, channels and columns as one row of
numbers. Then a pixel is a sum of a few columns of that, in the place of as many for each row.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats2, Floats3, Ints2
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of, list_scratch
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import (
    CompiledStep,
    cached_rows,
    row_scratch,
    whole_vectors,
)
from deltaconvert.backends.cpu.maps.flat import flat_map, rows_of
from deltaconvert.backends.cpu.maps.taps import Taps, taps_of
from deltaconvert.backends.cpu.operators import pooling
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.row import Row, add_row, everywhere
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode

refusal = pooling.refusal

# Pixels left out, from which rows are summed anew behind them.
_GAP = 8
_ZERO = np.float32(0)
_INT, _INDEX, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_FUSE = ("contract",)


class Resizing(NamedTuple):
    """A resizing.

    Args:
        parts, ending: of its step.
        taps: which pixels; those that do not exist come last.
        rows, cols: float32 ``[H_out, taps_y]`` and ``[W_out, taps_x]``: their weights.
        spans: int32 ``[W_out, 3]``: how many columns are read; the first that is from here on, and
            the last up to here (of a line's pixels, one may read fewer than its neighbours).
        channels: of a pixel.
        lines: float32 ``[workers, 1, W_in * C]`` and a vector more: the sum of rows.
        new: float32 ``[workers, rows, C]``, in whole vectors.
    """

    parts: Parts
    ending: Ending
    taps: Taps
    rows: Floats2
    cols: Floats2
    spans: Ints2
    channels: int
    lines: Floats3
    new: Floats3


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates, a line, and the rows of a batch."""
    channels, line = _numbers(node)
    return [*list_scratch(node), row_scratch("line", 1, line, workers),
            row_scratch("new", cached_rows(channels), channels, workers)]


def _numbers(node: DeltaNode) -> tuple[int, int]:
    """Return the numbers of a new row, and of a line."""
    shape = node.about.inputs[0].shape
    assert shape is not None
    return whole_vectors(shape[1]), shape[1] * shape[3] + WIDTH


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a resizing."""
    about = node.about
    assert about.operator is not None
    assert about.operator.weights is not None
    assert about.shapes is not None
    source, footprint = flat_map(buffers.inputs[0].value), about.footprints[0]
    row_ns = 0.03 * source.channels * sum(footprint.taps) + 20
    head = head_of(node, buffers, engine, row_ns, len(source.data))
    rows, cols = (np.array(t, np.float32, order="C") for t in about.operator.weights(about.shapes))
    (channels, line), threads = _numbers(node), engine.workers.threads
    task = Resizing(
        head.parts, ending_of(node, buffers, head, engine), taps_of(source, footprint), rows, cols,
        _spans(footprint), source.channels, rows_of(buffers.scratch["cpu.line"], threads, 1, line),
        rows_of(buffers.scratch["cpu.new"], threads, cached_rows(channels), channels))
    return CompiledStep(node, engine, head, RESIZE.of(source.data), task)


def _spans(footprint: Footprint) -> np.ndarray:
    exists = footprint.cols >= 0
    first = np.where(exists, footprint.cols, footprint.size_in[1]).min(1)
    return np.stack((exists.sum(1), np.minimum.accumulate(first[::-1])[::-1],
                     np.maximum.accumulate(footprint.cols.max(1))), 1).astype(np.int32)


@loop
def resize_rows(task, pixels, new, worker):
    """Compute pixels, neighbours in a line together."""
    cols, channels, line = task.taps.cols, task.channels, task.lines[worker, 0]
    height, width, count, i = task.rows.shape[0], cols.shape[0], pixels.shape[0], 0
    while i < count:
        at, j = np.int64(pixels[i]) // width, i + 1
        begin = at * width
        while j < count and pixels[j] < begin + width and pixels[j] - pixels[j - 1] <= _GAP:
            j += 1
        first = np.int64(task.spans[pixels[i] - begin, 1])
        last = np.int64(task.spans[pixels[j - 1] - begin, 2])
        sum_rows(task, at // height, at % height, first, last + 1 - first, line)
        sum_columns(line.ctypes.data - 4 * first * channels, begin, pixels[i:].ctypes.data, j - i,
                    cols.ctypes.data, task.cols.ctypes.data, cols.shape[1],
                    task.spans.ctypes.data, channels, new[i:].ctypes.data, 4 * new.shape[1])
        i = j


@loop
def sum_rows(task, lane, y, first, count, line):
    """Write the weighted sum of the rows of an output row, some columns of it."""
    taps, weights, channels = task.taps, task.rows, task.channels
    data, size = taps.data.ctypes.data, taps.data.itemsize
    numbers, pieces = count * channels, np.int64(1)
    if taps.step != channels:  # part of a larger map
        numbers, pieces = channels, count
    for i in range(count * channels):
        line[i] = _ZERO
    for tap in range(taps.rows.shape[1]):
        row = np.int64(taps.rows[y, tap])
        if row >= 0:
            source = data + size * taps.step * ((lane * taps.height + row) * taps.width + first)
            for piece in range(pieces):
                add_row(taps.data, source + size * taps.step * piece, weights[y, tap],
                        line.ctypes.data + 4 * channels * piece, numbers)


RESIZE = rowwise(Resizing, resize_rows)


def _sum_columns(typing: Any, line: Any, begin: Any, pixels: Any, count: Any, cols: Any,
                 weights: Any, most: Any, spans: Any, channels: Any, new: Any, step: Any) -> Any:
    """Write the weighted sums of some columns of a line for each pixel, in whole vectors.

    Args:
        line: address of where the first column would be.
        begin: the first pixel of the output's line.
        pixels, count: address of the pixels, int32, and how many they are.
        cols, weights, most, spans: addresses of the columns and their weights, ``[W_out, most]``,
            and of `Resizing.spans`.
        channels: of a column.
        new, step: address of the first sum, and bytes to the next.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, begin, pixels, count, cols, weights, most, spans, channels, new, step = args
        row = Row(builder, channels, types.float32)
        total = cgutils.alloca_once(builder, _VECTOR)

        def entry_of(table: Any, index: Any, kind: Any) -> Any:
            place = builder.add(table, builder.mul(index, _INT(4)))
            return builder.load(builder.inttoptr(place, kind.as_pointer()), align=4)

        vectors = builder.sdiv(builder.add(channels, _INT(WIDTH - 1)), _INT(WIDTH))
        with cgutils.for_range(builder, count) as over:
            x = builder.sub(builder.sext(entry_of(pixels, over.index, _INDEX), _INT), begin)
            taps = builder.sext(entry_of(spans, builder.mul(x, _INT(3)), _INDEX), _INT)
            at, out = builder.mul(x, most), builder.add(new, builder.mul(over.index, step))
            with cgutils.for_range(builder, vectors) as across:
                first = builder.mul(across.index, _INT(WIDTH))
                builder.store(ir.Constant(_VECTOR, None), total)
                with cgutils.for_range(builder, taps) as along:
                    tap = builder.add(at, along.index)
                    column, weight = entry_of(cols, tap, _INDEX), entry_of(weights, tap, _FLOAT)
                    place = builder.mul(builder.sext(column, _INT), channels)
                    number = row.load(line, builder.add(place, first), None)
                    product = builder.fmul(number, everywhere(builder, weight, WIDTH), flags=_FUSE)
                    builder.store(builder.fadd(product, builder.load(total), flags=_FUSE), total)
                row.store(builder.load(total), out, first, None)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 11), codegen


sum_columns: Any = intrinsic(_sum_columns)
