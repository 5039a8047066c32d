"""The mean of a whole map, and a map of one pixel as a vector."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Floats2,
    Floats3,
    Numbers,
    entries,
    take,
)
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of, list_scratch, whole_refusal
from deltaconvert.backends.cpu.frames.parts import DONE, GROUPS, TAKEN, Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.backends.cpu.maps.flat import flat, flat_map, rows_of
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of, finish_rows
from deltaconvert.nodes import DeltaNode

_CHANNELS = 64  # of a part: a few vectors, and some lines of each pixel
_ZERO = np.float32(0)


class Mean(NamedTuple):
    """The mean of each lane of a map.

    Args:
        parts, ending: of its step.
        data, step: of the map, see `FlatMap`.
        height, width, channels: of a lane.
        mask: of the map, uint8, flat.
        lines: float32 ``[lanes, H, C]``, kept from frame to frame: the sum of each line. One is
            summed anew where its mask is set, so that no rounding adds up.
        new: float32 ``[lanes, C]``.
    """

    parts: Parts
    ending: Ending
    data: Numbers
    step: int
    height: int
    width: int
    channels: int
    mask: Bytes
    lines: Floats3
    new: Floats2


def refusal(node: DeltaNode) -> str | None:
    """Return why this node must run elsewhere."""
    if reason := whole_refusal(node):
        return reason
    about = node.about
    assert about.operator is not None
    source, out = about.inputs[0].shape or (), about.output.shape or ()
    if about.operator.name in ("flatten", "reshape"):
        one = out[0] == source[0] and int(np.prod(source)) == source[0] * source[1]
        return None if one and len(out) == 2 else "not a map of one pixel as a vector"
    whole = len(source) == 4 and (about.operator.name != "mean" or {
        d % 4 for d in about.params["dim"]} == {2, 3})
    return None if whole else "not the mean of a whole map"


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of lanes, their results, and the sums of lines."""
    source, out = node.about.inputs[0].shape, node.about.output.shape
    assert source is not None
    assert out is not None
    lines = int(np.prod((*source, 1, 1)[:3]))
    return [*list_scratch(node), Scratch("cpu.new", 4 * int(np.prod(out))),
            Scratch(_lines(node), 4 * lines)]


def _lines(node: DeltaNode) -> str:
    return f"cpu.{node.about.name}.lines"


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a mean; of one pixel, that is the pixel itself."""
    source, out = flat_map(buffers.inputs[0].value), flat_map(buffers.output.value)
    head = head_of(node, buffers, engine, 0.1 * source.pixels * source.channels + 20, out.lanes)
    task = Mean(head.parts, ending_of(node, buffers, head, engine), source.data, source.step,
                source.height, source.width, source.channels, flat(buffers.inputs[0].mask),
                rows_of(buffers.scratch[_lines(node)], source.lanes, source.height,
                        source.channels),
                rows_of(buffers.scratch["cpu.new"], out.lanes, out.channels))
    return CompiledStep(node, engine, head, AVERAGE.of(source.data), task,
                        PREPARE.of(source.data))


@loop
def hand_out(task, workers):
    """Hand out channels instead of lanes."""
    task.parts.progress[GROUPS] = (task.channels + _CHANNELS - 1) // _CHANNELS
    task.parts.progress[DONE] = 0


@loop
def average(task, worker):
    """Average some channels of all lanes that changed, until all are taken; the last finishes."""
    progress = task.parts.progress
    lanes = task.parts.pixels[:task.parts.listed[0]]
    while True:
        group = take(progress.ctypes.data + 8 * TAKEN, 1)
        if group >= progress[GROUPS]:
            return
        first = group * _CHANNELS
        channels = min(_CHANNELS, task.channels - first)
        for i in range(lanes.shape[0]):
            average_channels(task, np.int64(lanes[i]), first,
                             task.new[i, first:first + channels])
        if take(progress.ctypes.data + 8 * DONE, 1) == progress[GROUPS] - 1:
            finish_rows(task.new, lanes, task.ending, worker)


@loop
def average_channels(task, lane, first, out):
    """Write the means of some channels of a lane; sums the lines that changed."""
    channels, width, step = out.shape[0], task.width, task.step
    out[:] = _ZERO
    for y in range(task.height):
        at = (lane * task.height + y) * width
        line = task.lines[lane, y, first:first + channels]
        changed = np.uint8(0)
        for x in range(width):
            changed |= task.mask[at + x]
        if changed != 0:
            line[:] = _ZERO
            for x in range(width):
                start = (at + x) * step + first
                pixel = task.data[start:start + channels]
                for c in range(channels):
                    line[c] += load(pixel, c)
        for c in range(channels):
            out[c] += line[c]
    count = np.float32(task.height * width)
    for c in range(channels):
        out[c] /= count


PREPARE, AVERAGE = entries(Mean, hand_out), entries(Mean, average)
