"""From which share of the work on a frame is faster the dense way: measured, once a program.

When a stream has its graph, it runs some frames of its own making both ways: its last frame, and
the same with other numbers in a rectangle, by turns. They are frames like any others, so that the
law holds for what they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from deltaconvert.backends.cuda.context import Context, size_of
from deltaconvert.backends.cuda.sparsify import CudaSparsify
from deltaconvert.cuda.launcher import Launch

SIDES = 1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4  # of a rectangle, in parts of the frame's
ROUNDS = 4  # of which the first two are not counted; an even number ends with the frame itself
ALWAYS_SPARSE, ALWAYS_DENSE = 1e9, -1.0

Timer = Callable[[Callable[[int], None], int], list[float]]


class Graph(Protocol):
    """Of a frame; see `FrameGraph`."""

    def update(self, launch: Launch) -> None:
        """Take over a kernel's arguments."""

    def replay(self) -> None:
        """Run."""


def measured(context: Context, doors: Sequence[CudaSparsify], graph: Graph,
             timer: Timer) -> float | None:
    """Run both ways; return the share of the sparse one's work at which they are even.

    Args:
        context: of a stream that has run a frame, and will run the next by the graph.
        doors: all of its doors in.
        graph: of a frame, with both ways.
        timer: calls a function with 0, 1, ... and returns how long each call took.

    Returns:
        The share; nothing where the sparse way takes as long for little as for much.
    """
    frames = [Frames(door) for door in doors]

    def run(turn: int) -> None:
        for door, pair in zip(doors, frames, strict=True):
            door.point_to(pair.value if turn % 2 else pair.changed)
            graph.update(door.examination)
            graph.update(door.replacement)
        graph.replay()

    def ms(way: float, side: float) -> float:
        context.set_break_even(way)
        for pair in frames:
            pair.change(side)
        return min(timer(run, ROUNDS)[2:])

    with _set_aside(context):
        dense = ms(ALWAYS_DENSE, SIDES[0])
        points: list[tuple[float, float]] = []
        for side in SIDES:
            took = ms(ALWAYS_SPARSE, side)
            points.append((float(context.work[0]), took))
            if took > dense:
                break
    return even(points, dense)


class Frames:
    """What a door holds, and the same with other numbers in a rectangle in the middle."""

    def __init__(self, door: CudaSparsify) -> None:
        """Make both."""
        edge = door.buffers.output
        self.value, self.size = edge.value.clone(), size_of(edge)
        self.changed = self.value.clone()
        generator = torch.Generator(self.value.device).manual_seed(0)
        noise = torch.randn(self.value.shape, device=self.value.device, generator=generator)
        spread = self.value.float().std()
        self.other = self.value + (noise * torch.where(spread > 0, spread, 1.0)).to(
            self.value.dtype)

    def change(self, side: float) -> None:
        """Take numbers over, in a rectangle with sides of so many parts of the map's."""
        starts = [int(size * (1 - side) / 2) for size in self.size]
        rows, cols = (slice(start, start + max(1, round(size * side)))
                      for start, size in zip(starts, self.size, strict=True))
        self.changed[:, :, rows, cols] = self.other[:, :, rows, cols]


def even(points: Sequence[tuple[float, float]], dense: float) -> float | None:
    """Return the share at which both ways take as long, by straight lines between points.

    Args:
        points: shares of the sparse way's work and how long it took, the smallest first.
        dense: how long the dense way took.

    Returns:
        0 where dense is the faster for the least that was tried; nothing without a line.
    """
    if points[0][1] > dense:
        return 0.0
    if len(points) == 1:
        return None
    # The line that crosses, or the last one, further on.
    at = next((i for i, (_, took) in enumerate(points) if took > dense), len(points) - 1)
    (share, took), (more, longer) = points[at - 1:at + 1]
    if longer <= took or more <= share:
        return None
    return share + (dense - took) * (more - share) / (longer - took)


@contextmanager
def _set_aside(context: Context) -> Iterator[None]:
    """Keep what frames have counted and marked."""
    kept: list[tuple[Tensor, Tensor]] = [(tensor, tensor.clone()) for tensor in (
        context.counters, context.totals, context.work, context.state.masks)]
    try:
        yield
    finally:
        for tensor, before in kept:
            tensor.copy_(before)


def by_events(run: Callable[[int], None], rounds: int) -> list[float]:
    """Return how many milliseconds the device took for each round."""
    pairs = []
    for turn in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(turn)
        end.record()
        pairs.append((start, end))
    torch.cuda.current_stream().synchronize()
    return [start.elapsed_time(end) for start, end in pairs]
