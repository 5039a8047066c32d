"""A local node's step: candidates in chunks, each computed and finished while it is hot."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.finish import Finish, nothing
from deltaconvert.backends.cpu.rows import CandidateFinder
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.nodes import DeltaNode

# Large enough to hide the calls of a chunk, small enough to be hot still when it is finished.
CHUNK_BYTES = 1536 * 1024
FEWEST_ROWS, MOST_ROWS = 128, 2048
FEWEST_SHARED_ROWS, LONG_PART_ROWS = 48, 256
# Waking a helper takes some 20 us; below, one worker is done before another has begun.
SHARED_WORK_NS = 60_000


class Producer(Protocol):
    """Computes f at some pixels, but for what `Finish` adds."""

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """Return float32 ``[M, C]`` for int32 ``[M]`` pixels; each worker has its own memory."""


def chunk_rows(numbers: int) -> int:
    """Return how many rows of so many numbers make a chunk."""
    rows = CHUNK_BYTES // (4 * max(numbers, 1)) // 64 * 64
    return min(max(rows, FEWEST_ROWS), MOST_ROWS)


def split(start: int, stop: int, most: int, workers: int) -> list[tuple[int, int]]:
    """Cut a range into even parts of at most ``most``.

    Several workers get a part each, two where those are long: a helper that wakes late then
    leaves little undone.
    """
    total = stop - start
    parts = -(-total // most)
    if workers > 1:
        parts = max(parts, min(workers, total // FEWEST_SHARED_ROWS),
                    min(2 * workers, total // LONG_PART_ROWS), 1)
        if parts > 1:  # the same for every worker, or some wait while one does the last
            parts = -(-parts // workers) * workers
    size = -(-total // parts)
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def row_scratch(name: str, rows: int, numbers: int, workers: int) -> list[Scratch]:
    """Return a worker's memory for a chunk, for every worker."""
    return [Scratch(f"cpu.{name}.{worker}", 4 * rows * numbers) for worker in range(workers)]


class ChunkedStep:
    """Calls a producer on chunks of the candidates, and `Finish` on what it returns.

    Args:
        node: a local node.
        buffers: what it is bound to.
        finish: the end of the step.
        produce: f at some pixels.
        workers: the pool.
        rows: of a chunk, at most.
        row_ns: about how long a pixel takes, to tell when sharing pays.
    """

    def __init__(self, node: DeltaNode, buffers: Buffers, finish: Finish, produce: Producer,
                 workers: Workers, rows: int, row_ns: float) -> None:
        """Keep them, and derive the tables of candidates."""
        self.finder = CandidateFinder(node, buffers)
        self.finish, self.produce, self.workers = finish, produce, workers
        self.rows, self.row_ns = rows, row_ns
        self.multiply_adds = node.about.multiply_adds

    def __call__(self) -> Work:
        """Apply the rule at this frame's candidates."""
        found = self.finder.find()
        if found is None:
            nothing(self.finish)
            return Work(0, 0)
        self.finish.begin()
        self.compute(found.pixels)
        self.finish.end()
        return Work(found.total, found.total * self.multiply_adds)

    def compute(self, pixels: np.ndarray) -> None:
        """Produce and finish every chunk."""
        share = len(pixels) * self.row_ns > SHARED_WORK_NS
        parts = split(0, len(pixels), self.rows, self.workers.threads if share else 1)

        def part(worker: int, index: int) -> None:
            chunk = pixels[slice(*parts[index])]
            self.finish.rows(worker, self.produce(worker, chunk), chunk)

        self.workers.run(part, len(parts), share)
