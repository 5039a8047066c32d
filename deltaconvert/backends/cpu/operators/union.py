"""A concatenation that is written in place: nothing to compute, the masks of its inputs united."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import entry
from deltaconvert.backends.cpu.compiling.native import Bytes, Longs2, layout, read
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of
from deltaconvert.backends.cpu.frames.parts import Parts, take_pixels
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.backends.cpu.maps.flat import flat
from deltaconvert.nodes import DeltaNode


class Union(NamedTuple):
    """A union of masks.

    Args:
        parts: of its step: the candidates are what is set in any input's mask.
        mask, plane, counts: see `Ending`.
    """

    parts: Parts
    mask: Bytes
    plane: int
    counts: Longs2


_UNION = layout(Union)


def bind(node: DeltaNode, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a concatenation written in place."""
    head = head_of(node, buffers, engine, 1.0, 1 << 30)
    task = Union(head.parts, flat(buffers.output.mask), head.plane, head.counts)
    return CompiledStep(node, engine, head, unite_parts, task)


@entry
def unite_parts(address, worker):
    """Set the mask at every candidate."""
    task = read(address, _UNION)
    while True:
        pixels = take_pixels(task.parts, worker)
        if pixels.shape[0] == 0:
            return
        for i in range(pixels.shape[0]):
            pixel = np.int64(pixels[i])
            task.mask[pixel] = 1
            task.counts[worker, pixel // task.plane] += 1
