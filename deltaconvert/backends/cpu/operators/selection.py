"""Selections: crops, flips, padding, nearest resizing; channels taken, split or shuffled."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats3, Ints
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, cached_rows, whole_vectors
from deltaconvert.backends.cpu.maps.flat import flat_map, rows_of
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.maps.taps import Taps, taps_of
from deltaconvert.backends.cpu.operators import elementwise, pooling
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.row import load_each, load_other, load_row
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode

plan = elementwise.plan


class Selection(NamedTuple):
    """Some channels of the one pixel that an output pixel reads.

    Args:
        parts, ending: of its step.
        taps: which pixel.
        channels: int32 ``[C]``, of it.
        apart: from each channel to the next, where that is always the same; else 0.
        missing: what a pixel holds that reads none.
        new: float32 ``[workers, rows, C]``, in whole vectors.
    """

    parts: Parts
    ending: Ending
    taps: Taps
    channels: Ints
    apart: int
    missing: np.float32
    new: Floats3


def refusal(node: DeltaNode) -> str | None:
    """Return why this selection must run elsewhere."""
    if reason := pooling.refusal(node):
        return reason
    about = node.about
    if about.footprints[0].taps != (1, 1):
        return "some of its pixels read none, or several"
    return "it pads channels" if any(about.params.get("padding", ())[4:]) else None


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a selection."""
    source, out = flat_map(buffers.inputs[0].value), flat_map(buffers.output.value)
    chosen = node.about.params.get("channels")
    channels = np.arange(source.channels) if chosen is None else np.array(chosen)
    steps = np.unique(np.diff(channels))
    apart = 1 if len(channels) == 1 else int(steps[0]) if len(steps) == 1 else 0
    width = whole_vectors(out.channels)
    rows = cached_rows(width)
    head = head_of(node, buffers, engine, 0.3 * out.channels + 20,
                   buffers.output.mask.numel())
    assert node.about.operator is not None
    missing = node.about.operator.missing(node.about.params)
    task = Selection(
        head.parts, ending_of(node, buffers, head, engine),
        taps_of(source, node.about.footprints[0]), channels.astype(np.int32), apart,
        np.float32(missing),
        rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows, width))
    return CompiledStep(node, engine, head, SELECT.of(source.data), task)


@loop
def select_rows(task, pixels, new, worker):
    """Write some channels of the pixels that are read. Divisions are slow: one a line."""
    taps, channels, count = task.taps, task.channels, task.channels.shape[0]
    data, size, same = taps.data, taps.data.itemsize, taps.same
    base = data.ctypes.data + size * channels[0]
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    if same and task.apart == 1:
        load_each(data, base, size * taps.step, pixels.ctypes.data, pixels.shape[0],
                  new.ctypes.data, 4 * new.shape[1], count)
        return
    begin, end, source = np.int64(0), np.int64(0), np.int64(0)
    for i in range(pixels.shape[0]):
        row, pixel = new[i], np.int64(pixels[i])
        place = pixel
        if not same:
            if pixel >= end:
                line = pixel // width_out
                begin, end = line * width_out, line * width_out + width_out
                tapped = np.int64(taps.rows[line % height_out, 0])
                source = (line // height_out * taps.height + tapped) * taps.width
                source = source if tapped >= 0 else np.int64(-1)
            column = np.int64(taps.cols[pixel - begin, 0])
            place = source + column if source >= 0 and column >= 0 else np.int64(-1)
        start = place * taps.step
        if place < 0:
            row[:] = task.missing
        elif task.apart == 1:
            load_row(data, base + size * start, row.ctypes.data, count)
        elif task.apart == 2:
            load_other(data, base + size * start, row.ctypes.data, count)
        else:
            copy_channels(data, start, channels, row)


@loop
def copy_channels(data, start, channels, row):
    """Write some channels of a pixel to a row."""
    for c in range(channels.shape[0]):
        row[c] = load(data, start + channels[c])


SELECT = rowwise(Selection, select_rows)
