"""The candidates of a step, in parts that its workers take."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Ints, Longs, take

# Numbers of `Parts.progress`. Behind them, in a cache line for each worker, lies its share: the
# next candidate that nobody has taken, and the end.
TAKEN, ROWS, GRAIN, MOST, WORKERS, GROUPS, DONE = range(7)
_LINE = 8
_NEXT, _END = 0, 1
# So that one that comes late leaves little undone.
_PARTS_OF_A_WORKER = 2


class Parts(NamedTuple):
    """The candidates of a step, and how far they are taken.

    Args:
        pixels: int32, flat indices ``(lane * height + y) * width + x``, ascending.
        listed: int64 ``[1 + inputs]``: how many, and the versions of the inputs' masks that
            they were derived from; shared, as ``pixels``, by all readers of equal footprints.
        progress: see `progress_of`: the rows of a part, what they are a multiple of and at
            most, the workers, their shares, and what other ways to share take.
    """

    pixels: Ints
    listed: Longs
    progress: Longs


def progress_of(threads: int) -> np.ndarray:
    """Return `Parts.progress` for so many workers."""
    return np.zeros(_LINE * (threads + 1), np.int64)


@loop
def divide(parts, first, last, grain, most, workers):
    """Give each worker a share of the candidates, and settle the rows of a part.

    Shares differ by ``grain`` rows at most, whatever the rows of a part: these are of one size
    for all, and the last of a share is what is left of it.

    Args:
        parts: with the candidates from ``first`` up to ``last``, exclusive.
        first, last: see above.
        grain: what the rows of a part are a multiple of.
        most: rows of a part.
        workers: how many there will be.
    """
    progress = parts.progress
    grains = (last - first + grain - 1) // grain
    share = (grains + workers - 1) // workers
    pieces = max((share * grain + most - 1) // most, _PARTS_OF_A_WORKER if workers > 1 else 1)
    progress[ROWS] = min((share + pieces - 1) // pieces * grain, most)
    progress[GRAIN], progress[MOST], progress[WORKERS] = grain, most, workers
    for worker in range(workers):
        line = _LINE * (worker + 1)
        progress[line + _NEXT] = min(first + grains * worker // workers * grain, last)
        progress[line + _END] = min(first + grains * (worker + 1) // workers * grain, last)


@loop
def take_pixels(parts, worker):
    """Return the next candidates that nobody has taken; none at the end.

    A worker begins with its own share, about the same part of the picture in every step, which it
    finds in its own cache, and then takes from the others'.
    """
    progress = parts.progress
    rows, workers = progress[ROWS], progress[WORKERS]
    for k in range(workers):
        whose = worker + k if worker + k < workers else worker + k - workers
        line = _LINE * (whose + 1)
        end = progress[line + _END]
        if progress[line + _NEXT] < end:
            start = take(progress.ctypes.data + 8 * (line + _NEXT), rows)
            if start < end:
                return parts.pixels[start:min(start + rows, end)]
    return parts.pixels[:0]
