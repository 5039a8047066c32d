"""The loop of every step that computes rows in memory of its worker's own and applies the rule."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Entries, entries
from deltaconvert.backends.cpu.frames.parts import take_pixels
from deltaconvert.backends.cpu.rows.finish import finish_batch


def rowwise(kind: type, compute: Any, spare: int = 0) -> Entries:
    """Make the entries of a step.

    Args:
        kind: of its tasks, a `NamedTuple` with ``parts: Parts``, ``ending: Ending`` and
            ``new: Floats3``, float32 ``[workers, rows, C]`` or wider.
        compute: a loop, ``compute(task, pixels, new, worker)``: writes the row of each pixel.
        spare: rows of ``new`` beyond the last pixel's that it may write.
    """
    @loop
    def compute_parts(task, worker):
        new = task.new[worker]
        batch = new.shape[0] - spare
        while True:
            taken = take_pixels(task.parts, worker)
            if taken.shape[0] == 0:
                return
            for first in range(0, taken.shape[0], batch):
                pixels = taken[first:first + batch]
                compute(task, pixels, new, worker)
                finish_batch(new, taken, first, first + pixels.shape[0], task.ending, worker)

    return entries(kind, compute_parts, compute.__name__)
