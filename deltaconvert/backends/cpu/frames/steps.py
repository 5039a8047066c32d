"""A step of this backend: its place in the stream's table, and the memory that steps want."""

from __future__ import annotations

from typing import Any

import numpy as np

from deltaconvert.backends.base import Scratch, Work
from deltaconvert.backends.cpu.compiling.jit import Entry
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import FOUND, Head
from deltaconvert.nodes import DeltaNode

# Large enough to hide the calls of a chunk, small enough to be hot still when it is finished.
_CHUNK_BYTES = 1536 * 1024
_FEWEST_ROWS, _MOST_ROWS = 128, 2048
# What is left in the first cache from one pass over rows to the next.
_CACHED_NUMBERS = 4096


class CompiledStep:
    """A node's step that runs in compiled code, alone or with the steps around it.

    Args:
        node: a local node.
        engine: of the stream.
        head: of the step.
        work, task, prepare: see `Engine.add`.
        beyond: int64 ``[2]``: pixels that were computed and are no candidates, in the last frame
            that had any and in all.
    """

    def __init__(self, node: DeltaNode, engine: Engine, head: Head, work: Entry, task: Any,
                 prepare: Entry | None = None, beyond: np.ndarray | None = None) -> None:
        """Add it to the stream's table."""
        self.node, self.engine, self.head, self.task = node, engine, head, task
        self.beyond = np.zeros(2, np.int64) if beyond is None else beyond
        self.place = engine.add(head, work, task, prepare)

    @property
    def ledger(self) -> np.ndarray:
        """The work of the last frame and of all."""
        ledger: np.ndarray = self.head.ledger
        return ledger

    def __call__(self) -> Work:
        """Apply the rule at this frame's candidates."""
        self.engine.run(self.place, self.place + 1)
        found = int(self.ledger[FOUND])
        computed = found + int(self.beyond[0]) if found else 0
        return Work(found, computed * self.node.about.multiply_adds)


def chunk_rows(numbers: int) -> int:
    """Return how many rows of so many numbers make a chunk."""
    rows = _CHUNK_BYTES // (4 * max(numbers, 1)) // 64 * 64
    return min(max(rows, _FEWEST_ROWS), _MOST_ROWS)


def cached_rows(numbers: int) -> int:
    """Return how many rows of so many numbers stay in the first cache; no more than of a chunk."""
    return min(max(_CACHED_NUMBERS // max(numbers, 1), 4), _FEWEST_ROWS)


def whole_vectors(channels: int) -> int:
    """Return the numbers of a row, in whole vectors: a load stalls behind a store in its reach."""
    return -(-channels // WIDTH) * WIDTH


def row_scratch(name: str, rows: int, numbers: int, workers: int) -> Scratch:
    """Return memory for a chunk of rows for every worker."""
    return Scratch(f"cpu.{name}", 4 * workers * rows * numbers)
