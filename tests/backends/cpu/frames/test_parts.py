"""How the candidates of a step are shared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from deltaconvert.backends.cpu.compiling.jit import entry
from deltaconvert.backends.cpu.compiling.native import Kept, Longs, Longs2, layout, read
from deltaconvert.backends.cpu.frames.parts import Parts, divide, progress_of, take_pixels

MOST_PARTS = 64


class Sharing(NamedTuple):
    """Candidates that are divided, and then taken by one worker after the other.

    Args:
        parts: of a step.
        told: int64: the first and the end of the candidates, the grain, the most rows of a part,
            and the workers.
        taken: int64 ``[parts, 3]``, written: who takes, the first candidate, and how many.
    """

    parts: Parts
    told: Longs
    taken: Longs2


_SHARING = layout(Sharing)


@entry
def take_in_turns(address, _):
    task = read(address, _SHARING)
    told, workers = task.told, task.told[4]
    divide(task.parts, told[0], told[1], told[2], told[3], workers)
    for turn in range(task.taken.shape[0]):
        pixels = take_pixels(task.parts, turn % workers)
        if pixels.shape[0] == 0:
            return
        task.taken[turn, 0], task.taken[turn, 1] = turn % workers, pixels[0]
        task.taken[turn, 2] = pixels.shape[0]


def taken(first: int, last: int, grain: int, most: int, workers: int) -> list[Any]:
    parts = Parts(np.arange(last, dtype=np.int32), np.zeros(1, np.int64), progress_of(workers))
    task = Kept(Sharing(parts, np.array([first, last, grain, most, workers], np.int64),
                        np.zeros((MOST_PARTS, 3), np.int64)))
    take_in_turns(task.address, 0)
    return [row for row in task.value.taken.tolist() if row[2]]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("first, last", [(0, 1), (0, 347), (5, 730), (3, 3), (0, 24)])
@pytest.mark.parametrize("grain, most", [(1, 1 << 30), (12, 180), (12, 60)])
def test_all_are_taken_once_in_parts_of_whole_grains(first: int, last: int, grain: int, most: int,
                                                     workers: int) -> None:
    parts = taken(first, last, grain, most, workers)
    assert sorted(pixel for _, start, count in parts
                  for pixel in range(start, start + count)) == list(range(first, last))
    assert all(count <= most for *_, count in parts)
    assert all((start - first) % grain == 0 for _, start, _ in parts)


def test_one_worker_takes_all_at_once() -> None:
    assert taken(0, 347, 12, 1 << 30, 1) == [[0, 0, 347]]


@pytest.mark.parametrize("found", [215, 347, 730])
def test_shares_differ_by_a_grain_at_most(found: int) -> None:
    """Whatever the parts: 215 rows in parts of 60 were 120 and 95."""
    by = [0, 0]
    for worker, _, count in taken(0, found, 12, 180, 2):
        by[worker] += count
    assert abs(by[0] - by[1]) <= 12
