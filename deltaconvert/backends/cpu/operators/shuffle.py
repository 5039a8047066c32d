"""Pixel shuffle: each output pixel takes the channels that are its place's in a square."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats3, Numbers
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, cached_rows, whole_vectors
from deltaconvert.backends.cpu.maps.flat import flat_map, rows_of
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.operators import elementwise, pooling
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode

refusal, plan = pooling.refusal, elementwise.plan


class Shuffle(NamedTuple):
    """A pixel shuffle.

    Args:
        parts, ending: of its step.
        data, step: of the map that is read, see `FlatMap`.
        factor: of the shuffle.
        width: of the output.
        new: float32 ``[workers, rows, C]``, in whole vectors.
    """

    parts: Parts
    ending: Ending
    data: Numbers
    step: int
    factor: int
    width: int
    new: Floats3


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a pixel shuffle."""
    source, out = flat_map(buffers.inputs[0].value), flat_map(buffers.output.value)
    width = whole_vectors(out.channels)
    rows = cached_rows(width)
    head = head_of(node, buffers, engine, 0.3 * out.channels + 20, rows)
    task = Shuffle(head.parts, ending_of(node, buffers, head, engine), source.data, source.step,
                   node.about.params["factor"], out.width,
                   rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows, width))
    return CompiledStep(node, engine, head, SHUFFLE.of(source.data), task)


@loop
def shuffle_rows(task, pixels, new, worker):
    """Copy channel ``c factor^2 + i factor + j`` for the pixel at ``(i, j)`` of its square.

    Divisions are slow: neighbours have neighbouring places.
    """
    data, step, factor, width = task.data, task.step, task.factor, task.width
    square = factor * factor
    end, first, base, column, along = 0, 0, 0, 0, 0
    before = np.int64(-2)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        if pixel >= end:
            line = pixel // width
            first, end = line * width, (line + 1) * width
            down = line // factor  # lines of all lanes: the height is a multiple
            base = down * (width // factor) * step + (line - down * factor) * factor
        if pixel == before + 1 and pixel != first:
            along += 1
            if along == factor:
                column, along = column + 1, 0
        else:
            column = (pixel - first) // factor
            along = pixel - first - column * factor
        before = pixel
        start, row = base + column * step + along, new[i]
        for c in range(task.ending.channels):
            row[c] = load(data, start + c * square)


SHUFFLE = rowwise(Shuffle, shuffle_rows)
