"""The door in: which pixels of a frame changed, found while it is checked, in one read."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.engine import Engine
from deltaconvert.backends.cpu.frames import (
    BLOCK,
    compare_blocks,
    compare_pixels,
    replace_marked,
)
from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.maps import flat, flat_map
from deltaconvert.backends.cpu.native import (
    Bytes,
    Doubles,
    Entries,
    Flags,
    Longs,
    Numbers,
    layout,
    read,
    take,
    view,
)
from deltaconvert.backends.cpu.storage import numbers_of
from deltaconvert.backends.reference import refuse_not_finite
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode

# Numbers that one worker compares in the time that waking another takes, several times over.
SHARED_NUMBERS = 200_000


def plan(node: DeltaNode) -> list[Scratch]:
    """Return the marks of the frame under examination."""
    return [Scratch(f"cpu.{node.about.name}.marks", int(np.prod(node.about.output.mask_shape)))]


class Comparison(NamedTuple):
    """A frame that is compared with the value.

    Args:
        frame: int64 ``[1]``: the address of its numbers.
        strides, shape: int64 ``[4]``, of lane, channel, row and pixel.
        value, step: see `FlatMap`.
        block, block_threshold, cap: the test of blocks, if so.
        thresholds, rms: the test of pixels, one a lane.
        marks: uint8, flat, written.
        taken: int64 ``[1]``: lines that are taken.
        finite: bool ``[workers]``, written.
    """

    frame: Longs
    strides: Longs
    shape: Longs
    value: Numbers
    step: int
    block: bool
    block_threshold: np.float32
    cap: np.float32
    thresholds: Doubles
    rms: bool
    marks: Bytes
    taken: Longs
    finite: Flags


_COMPARISON, _COMPARISON16 = layout(Comparison), layout(Comparison, types.uint16)


@entry
def _compare(address, worker):
    compare_parts(read(address, _COMPARISON), worker)


@entry
def _compare16(address, worker):
    compare_parts(read(address, _COMPARISON16), worker)


COMPARE = Entries(_compare, _compare16)


@loop
def compare_parts(task, worker):
    """Mark what changed in the lines of the frame, or rows of blocks, until all are taken."""
    numbers = 1 + ((task.shape - 1) * task.strides).sum()
    frame = view(task.frame[0], numbers, task.value)
    rows = (task.shape[2] + BLOCK - 1) // BLOCK if task.block else task.shape[2]
    total, size = rows * task.shape[0], 2 if task.block else 2 * BLOCK
    while True:
        first = take(task.taken.ctypes.data, size)
        if first >= total:
            return
        last = min(first + size, total)
        if task.block:
            finite = compare_blocks(
                frame, task.strides, task.shape, task.value, task.step, task.block_threshold,
                task.cap, task.rms, first, last, task.marks)
        else:
            finite = compare_pixels(
                frame, task.strides, task.shape, task.value, task.step, task.thresholds,
                task.rms, first, last, task.marks)
        task.finite[worker] = task.finite[worker] and finite


class CpuSparsify:
    """See `SparsifyStep`."""

    def __init__(self, node: DeltaNode, config: Config, buffers: Buffers, engine: Engine) -> None:
        """Resolve buffers and settings."""
        self.node, self.engine = node, engine
        self.edge, self.state = buffers.output, buffers.state
        self.value = flat_map(self.edge.value)
        self.mask = flat(self.edge.mask)
        self.marks = flat(buffers.scratch[f"cpu.{node.about.name}.marks"])[:self.mask.size]
        self.counts = np.zeros(self.value.lanes, np.int64)
        self.task = Comparison(
            np.zeros(1, np.int64), np.zeros(4, np.int64),
            np.array(self.edge.value.shape, np.int64), self.value.data, self.value.step,
            config.input_test == "block" and config.input_threshold > 0,
            np.float32(config.input_threshold), np.float32(config.cap), self.edge.threshold,
            node.about.norm == "rms", self.marks, np.zeros(1, np.int64),
            np.ones(engine.workers.threads, np.bool_))
        self.place = engine.add(None, COMPARE.of(self.value.data), self.task)

    def examine(self, frame: Tensor) -> None:
        """Mark what changed, in memory of its own; change nothing else.

        Raises:
            NotFiniteError: naming the lane and how many numbers are not finite.
        """
        numbers, self.task.strides[:] = flat_frame(frame)
        self.task.frame[0], self.task.taken[0] = numbers.ctypes.data, 0
        self.task.finite[:] = True
        self.engine.run(self.place, self.place + 1, numbers.size > SHARED_NUMBERS)
        if not self.task.finite.all():
            refuse_not_finite(self.node, frame)

    def __call__(self, frame: Tensor) -> Work:
        """Replace the pixels that `examine` marked; all of a fresh lane."""
        pixels = self.value.pixels
        for lane in self.state.fresh.nonzero()[0]:
            self.marks[lane * pixels:(lane + 1) * pixels] = 1
        numbers, strides = flat_frame(frame)
        replace_marked(numbers, strides, self.task.shape, self.marks, self.value.data,
                       self.value.step, self.counts)
        if self.edge.changed or self.counts.any():
            np.copyto(self.mask, self.marks)
        self.edge.publish(self.counts.tolist())
        return Work(self.mask.size, 0)


def flat_frame(frame: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """View a frame as one flat array and its strides; copied only where it is scattered.

    Returns:
        of the frame's type (see `storage`) ``[numbers]``, and int64 ``[4]``.
    """
    frame = frame.detach()
    span = 1 + sum((size - 1) * step
                   for size, step in zip(frame.shape, frame.stride(), strict=True))
    if span != frame.numel():
        frame = frame.contiguous()
        span = frame.numel()
    strides = np.array(frame.stride(), np.int64)
    return numbers_of(frame.as_strided((span,), (1,))), strides
