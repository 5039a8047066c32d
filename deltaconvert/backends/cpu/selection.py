"""Selections: crops, flips, nearest resizing, and channels taken, split or shuffled."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu import elementwise, pooling
from deltaconvert.backends.cpu.elementwise import place_of
from deltaconvert.backends.cpu.engine import Engine
from deltaconvert.backends.cpu.finish import Ending, ending_of, finish_batch
from deltaconvert.backends.cpu.frame import Parts, take_pixels
from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.maps import flat_map, rows_of
from deltaconvert.backends.cpu.native import Entries, Floats3, Ints, layout, read
from deltaconvert.backends.cpu.row import load_other, load_row
from deltaconvert.backends.cpu.rows import head_of
from deltaconvert.backends.cpu.steps import CompiledStep, cached_rows
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.taps import Taps, taps_of
from deltaconvert.nodes import DeltaNode

plan = elementwise.plan


class Selection(NamedTuple):
    """Some channels of the one pixel that an output pixel reads.

    Args:
        parts, ending: of its step.
        taps: which pixel.
        channels: int32 ``[C]``, of it.
        apart: from each channel to the next, where that is always the same; else 0.
        new: float32 ``[workers, rows, C]``.
    """

    parts: Parts
    ending: Ending
    taps: Taps
    channels: Ints
    apart: int
    new: Floats3


_SELECTION, _SELECTION16 = layout(Selection), layout(Selection, types.uint16)


def refusal(node: DeltaNode) -> str | None:
    """Return why this selection must run elsewhere."""
    reason = pooling.refusal(node)
    single = reason is None and node.about.footprints[0].is_single
    return reason if reason or single else "some of its pixels read none"


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a selection."""
    source, out = flat_map(buffers.inputs[0].value), flat_map(buffers.output.value)
    chosen = node.about.params.get("channels")
    channels = np.arange(source.channels) if chosen is None else np.array(chosen)
    steps = np.unique(np.diff(channels))
    apart = 1 if len(channels) == 1 else int(steps[0]) if len(steps) == 1 else 0
    rows = cached_rows(out.channels)
    head = head_of(node, buffers, engine, 0.3 * out.channels + 20,
                   buffers.output.mask.numel())
    task = Selection(
        head.parts, ending_of(node, buffers, head, engine),
        taps_of(source, node.about.footprints[0]), channels.astype(np.int32), apart,
        rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows, out.channels))
    return CompiledStep(node, engine, head, SELECT.of(source.data), task)


@entry
def _select(address, worker):
    select_parts(read(address, _SELECTION), worker)


@entry
def _select16(address, worker):
    select_parts(read(address, _SELECTION16), worker)


SELECT = Entries(_select, _select16)


@loop
def select_parts(task, worker):
    """Compute and finish parts until all are taken."""
    new, channels, data = task.new[worker], task.channels, task.taps.data
    batch, base = new.shape[0], data.ctypes.data + data.itemsize * channels[0]
    while True:
        taken = take_pixels(task.parts, worker)
        if taken.shape[0] == 0:
            return
        for first in range(0, taken.shape[0], batch):
            last = min(first + batch, taken.shape[0])
            for i in range(first, last):
                row, pixel = new[i - first], np.int64(taken[i])
                start = pixel * task.taps.step if task.taps.same else place_of(task.taps, pixel)
                if task.apart == 1:
                    load_row(data, base + data.itemsize * start, row.ctypes.data, row.shape[0])
                elif task.apart == 2:
                    load_other(data, base + data.itemsize * start, row.ctypes.data, row.shape[0])
                else:
                    copy_channels(data, start, channels, row)
            finish_batch(new, taken, first, last, task.ending, worker)


@loop
def copy_channels(data, start, channels, row):
    """Write some channels of a pixel to a row."""
    for c in range(channels.shape[0]):
        row[c] = load(data, start + channels[c])
