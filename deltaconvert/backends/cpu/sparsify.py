"""The door in: which pixels of a frame changed, found while it is checked, in one read."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.frames import (
    BLOCK,
    compare_blocks,
    compare_pixels,
    replace_pixels,
)
from deltaconvert.backends.cpu.maps import flat, flat_map, ints
from deltaconvert.backends.cpu.rows import collect
from deltaconvert.backends.cpu.storage import numbers_of
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.backends.reference import refuse_not_finite
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode

# Numbers that one worker compares in the time that waking another takes, several times over.
SHARED_NUMBERS = 200_000


def plan(node: DeltaNode) -> list[Scratch]:
    """Return the marks of the frame under examination, and the list of its pixels."""
    pixels = int(np.prod(node.about.output.mask_shape))
    return [Scratch(f"cpu.{node.about.name}.marks", pixels), Scratch("cpu.sparsify", 4 * pixels)]


class CpuSparsify:
    """See `SparsifyStep`."""

    def __init__(self, node: DeltaNode, config: Config, buffers: Buffers,
                 workers: Workers) -> None:
        """Resolve buffers and settings."""
        self.node, self.workers = node, workers
        self.edge, self.state = buffers.output, buffers.state
        self.value = flat_map(self.edge.value)
        self.mask = flat(self.edge.mask)
        self.marks = flat(buffers.scratch[f"cpu.{node.about.name}.marks"])[:self.mask.size]
        self.pixels = ints(buffers.scratch["cpu.sparsify"], self.mask.size)
        self.shape = np.array(self.edge.value.shape, np.int64)
        self.rms = node.about.norm == "rms"
        self.block = config.input_test == "block" and config.input_threshold > 0
        self.block_threshold = np.float32(config.input_threshold)
        self.cap = np.float32(config.cap)

    def examine(self, frame: Tensor) -> None:
        """Mark what changed, in memory of its own; change nothing else.

        Raises:
            NotFiniteError: naming the lane and how many numbers are not finite.
        """
        numbers, strides = flat_frame(frame)
        height = self.value.height
        rows = self.value.lanes * (-(-height // BLOCK) if self.block else height)
        share = numbers.size > SHARED_NUMBERS
        size = -(-rows // (4 * self.workers.threads)) if share else rows
        finite = np.ones(-(-rows // size), np.bool_)

        def part(worker: int, index: int) -> None:
            finite[index] = self._compare(numbers, strides, index * size,
                                          min((index + 1) * size, rows))

        self.workers.run(part, len(finite), share)
        if not finite.all():
            refuse_not_finite(self.node, frame)

    def _compare(self, numbers: np.ndarray, strides: np.ndarray, first: int, last: int) -> bool:
        args = (numbers, strides, self.shape, self.value.data, self.value.step)
        if self.block:
            return bool(compare_blocks(*args, self.block_threshold, self.cap, self.rms, first,
                                       last, self.marks))
        thresholds = self.edge.threshold.astype(np.float32)
        return bool(compare_pixels(*args, thresholds, self.rms, first, last, self.marks))

    def __call__(self, frame: Tensor) -> Work:
        """Replace the pixels that `examine` marked; all of a fresh lane."""
        pixels = self.value.pixels
        for lane, fresh in enumerate(self.state.fresh):
            if fresh:
                self.marks[lane * pixels:(lane + 1) * pixels] = 1
        counts = np.zeros(self.value.lanes, np.int64)
        total = collect(self.marks, pixels, self.pixels, counts)
        if total:
            numbers, strides = flat_frame(frame)
            replace_pixels(numbers, strides, self.shape, self.pixels[:total], self.value.data,
                           self.value.step)
        if total or self.edge.changed:
            np.copyto(self.mask, self.marks)
        self.edge.publish(counts.tolist())
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


