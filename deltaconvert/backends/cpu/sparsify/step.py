"""The door in: which pixels of a frame changed, found while it is checked, in one read."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Doubles,
    Flags,
    Longs,
    Longs2,
    Numbers,
    entries,
    take,
    view,
)
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import LEDGER, count_work
from deltaconvert.backends.cpu.maps.flat import flat, flat_map
from deltaconvert.backends.cpu.sparsify.blocks import BLOCK, compare_blocks
from deltaconvert.backends.cpu.sparsify.pixels import compare_pixels
from deltaconvert.backends.cpu.sparsify.replace import replace_line
from deltaconvert.backends.reference import refuse_not_finite
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode

# Numbers that one worker compares in the time that waking another takes, several times over.
SHARED_NUMBERS = 200_000


def plan(node: DeltaNode) -> list[Scratch]:
    """Return the marks of the frame under examination."""
    pixels = int(np.prod(node.about.output.mask_shape))
    return [Scratch(f"cpu.{node.about.name}.marks", pixels)]


class Comparison(NamedTuple):
    """A frame that is compared with the value.

    Args:
        frame: int64 ``[2]``: the address of its numbers, and how many there are.
        strides, shape: int64 ``[4]``, of lane, channel, row and pixel.
        value, step: see `FlatMap`.
        block_threshold, cap: of the test of blocks.
        thresholds, rms: the test of pixels, one a lane.
        marks: uint8, flat, written.
        taken: int64 ``[1]``: lines that are taken.
        finite: bool ``[workers]``, written.
        fresh: one a lane.
        mask: of the edge.
        counts: int64 ``[workers, lanes]``: the pixels that are marked, written.
        before: int64 ``[lanes]``: those of the last frame.
        tally: of the edge.
        ledger: int64 ``[LEDGER]``, see `frame`.
        refused: see `Session`.
    """

    frame: Longs
    strides: Longs
    shape: Longs
    value: Numbers
    step: int
    block_threshold: np.float32
    cap: np.float32
    thresholds: Doubles
    rms: bool
    marks: Bytes
    taken: Longs
    finite: Flags
    fresh: Flags
    mask: Bytes
    counts: Longs2
    before: Longs
    tally: Longs
    ledger: Longs
    refused: Longs


@loop
def begin(task, workers):
    """Forget the frame before this."""
    task.taken[0] = 0
    task.finite[:] = True
    task.counts[:] = 0


@loop
def publish(task, workers):
    """Publish how many pixels are to be replaced, of a fresh lane all; or refuse the frame."""
    for worker in range(task.finite.shape[0]):
        if not task.finite[worker]:
            task.refused[0] = 1
            return
    lanes = task.fresh.shape[0]
    plane, total = task.mask.shape[0] // lanes, np.int64(0)
    for lane in range(lanes):
        written = np.int64(0)
        for worker in range(task.counts.shape[0]):
            written += task.counts[worker, lane]
        task.before[lane] = task.tally[lane]
        task.tally[lane] = plane if task.fresh[lane] else written
        total += task.tally[lane]
    task.tally[lanes] += 1
    task.taken[0] = 0
    count_work(task.ledger, task.mask.shape[0], total)


@loop
def pixel_parts(task, worker):
    """Mark what changed in the lines of the frame, until all are taken."""
    frame = view(task.frame[0], task.frame[1], task.value)
    total, size = task.shape[2] * task.shape[0], 2 * BLOCK
    while True:
        first = take(task.taken.ctypes.data, size)
        if first >= total:
            return
        finite = compare_pixels(
            frame, task.strides, task.shape, task.value, task.step, task.thresholds, task.rms,
            first, min(first + size, total), task.marks)
        task.finite[worker] = task.finite[worker] and finite
        count_marks(task, first, min(first + size, total), 1, worker)


@loop
def block_parts(task, worker):
    """Mark what changed in the rows of blocks of the frame, until all are taken."""
    frame = view(task.frame[0], task.frame[1], task.value)
    total, size = (task.shape[2] + BLOCK - 1) // BLOCK * task.shape[0], 2
    while True:
        first = take(task.taken.ctypes.data, size)
        if first >= total:
            return
        finite = compare_blocks(
            frame, task.strides, task.shape, task.value, task.step, task.block_threshold, task.cap,
            task.rms, first, min(first + size, total), task.marks)
        task.finite[worker] = task.finite[worker] and finite
        count_marks(task, first, min(first + size, total), BLOCK, worker)


@loop
def count_marks(task, first, last, lines, worker):
    """Count what is marked in rows of so many lines; the last of a lane may have fewer."""
    height, width = task.shape[2], task.shape[3]
    rows = (height + lines - 1) // lines
    for row in range(first, last):
        lane, top = row // rows, row % rows * lines
        begin = (lane * height + top) * width
        found = np.int64(0)
        for at in range(begin, begin + min(lines, height - top) * width):
            found += task.marks[at]
        task.counts[worker, lane] += found


@loop
def replace_marked(task, worker):
    """Replace the pixels that are marked, and all of fresh lanes, until all lines are taken."""
    frame = view(task.frame[0], task.frame[1], task.value)
    height, width, total = task.shape[2], task.shape[3], task.shape[2] * task.shape[0]
    while True:
        first = take(task.taken.ctypes.data, 2 * BLOCK)
        if first >= total:
            return
        for line in range(first, min(first + 2 * BLOCK, total)):
            lane = line // height
            marks = task.marks[line * width:(line + 1) * width]
            if task.fresh[lane]:
                marks[:] = 1
            found = np.int64(0)
            for x in range(width):
                found += marks[x]
            if found != 0 or task.before[lane] != 0:
                mask = task.mask[line * width:(line + 1) * width]
                for x in range(width):
                    mask[x] = marks[x]
            if found != 0:
                start = lane * task.strides[0] + line % height * task.strides[2]
                replace_line(frame, start, task.strides[1], task.strides[3], task.value,
                             line * width * task.step, task.step, task.shape[1], marks)


BEGIN, PUBLISH = entries(Comparison, begin), entries(Comparison, publish)
COMPARE_PIXELS = entries(Comparison, pixel_parts)
COMPARE_BLOCKS = entries(Comparison, block_parts)
REPLACE = entries(Comparison, replace_marked)


class CpuSparsify:
    """See `SparsifyStep`."""

    def __init__(self, node: DeltaNode, config: Config, buffers: Buffers, engine: Engine) -> None:
        """Resolve buffers and settings."""
        self.node, self.engine = node, engine
        self.edge, self.state = buffers.output, buffers.state
        value, mask = flat_map(self.edge.value), flat(self.edge.mask)
        blocks = config.input_test == "block" and config.input_threshold > 0
        self.task = Comparison(
            np.zeros(2, np.int64), np.zeros(4, np.int64),
            np.array(self.edge.value.shape, np.int64), value.data, value.step,
            np.float32(config.input_threshold), np.float32(config.cap), self.edge.threshold,
            node.about.norm == "rms",
            flat(buffers.scratch[f"cpu.{node.about.name}.marks"])[:mask.size],
            np.zeros(1, np.int64), np.ones(engine.workers.threads, np.bool_), self.state.fresh,
            mask, np.zeros((engine.workers.threads, value.lanes), np.int64),
            np.zeros(value.lanes, np.int64), self.edge.tally, np.zeros(LEDGER, np.int64),
            engine.refused)
        self.task.frame[1] = self.edge.value.numel()
        compare = COMPARE_BLOCKS if blocks else COMPARE_PIXELS
        self._frame: Tensor | None = None  # from when it is examined until it is run
        self._strides: tuple[int, ...] = ()
        self.last = 0
        self._is_run = False
        self._large = self.edge.value.numel() > SHARED_NUMBERS
        self.place = engine.add(None, compare.of(value.data), self.task, BEGIN.of(value.data))
        engine.add(None, REPLACE.of(value.data), self.task, PUBLISH.of(value.data))

    @property
    def ledger(self) -> np.ndarray:
        """The work of the last frame and of all."""
        return self.task.ledger

    def examine(self, frame: Tensor) -> None:
        """Mark what changed, in memory of its own; change nothing else.

        With `last`, the only door's, a frame that is not refused is run at once: coming back to
        Python and calling the helpers again would take as long as some of the steps.

        Raises:
            NotFiniteError: naming the lane and how many numbers are not finite.
        """
        # In few calls, here and around the frame: the caches have forgotten PyTorch's code.
        self._frame = frame = frame.resolve_neg() if frame.is_neg() else frame
        if frame.stride() != self._strides:
            self._frame = frame = without_gaps(frame)
            self._strides = frame.stride()
            self.task.strides[:] = self._strides
        self.task.frame[0] = frame.data_ptr()
        state = self.state
        self._is_run = self.last > 0 and state.observer is None and (
            True not in state.fresh.tolist())
        if self._is_run:
            self.engine.run(self.place, self.last)
        else:
            self.engine.run(self.place, self.place + 1, self._large)
        if False in self.task.finite.tolist():
            refuse_not_finite(self.node, frame)

    def __call__(self, frame: Tensor, last: int = 0) -> Work:
        """Replace the pixels that `examine` marked, if it has not; all of a fresh lane.

        Args:
            frame: that was examined.
            last: run the steps behind the door as well, up to this place in the table, exclusive.
        """
        if not self._is_run:
            share = (self._large or last > 0) and any(map(any, self.task.counts.tolist()))
            self.engine.run(self.place + 1, max(last, self.place + 2), share)
        self._frame, self._is_run = None, False
        return Work(self.task.mask.size, 0)


def without_gaps(frame: Tensor) -> Tensor:
    """Return a frame whose numbers are all there is between its first and its last: a copy, if it
    is not so.
    """
    span = 1 + sum((size - 1) * step
                   for size, step in zip(frame.shape, frame.stride(), strict=True))
    return frame if span == frame.numel() else frame.contiguous()
