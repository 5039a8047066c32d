"""From which share of the work on a frame is faster the dense way: measured, once a program.

When a stream has its graph, it runs some frames of its own making both ways: its last frame, and
the same with other numbers in a rectangle, by turns. Nothing is left of them: what a frame builds
on is kept meanwhile, in as much memory as all values take.
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
ROUNDS = 4  # of which the first two are not counted
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
        The share; nothing where the rectangles make no difference to it.
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
            context.work[0] = 0  # for where the doors let nothing in
            took = ms(ALWAYS_SPARSE, side)
            points.append((float(context.work[0]), took))
            if all(took > dense for _, took in points[-2:]) and len(points) > 1:
                break  # not by one alone, which other work on the card may have held up
    return even(points, dense)


class Frames:
    """What a door holds, and the same with other numbers in a rectangle in the middle."""

    def __init__(self, door: CudaSparsify) -> None:
        """Make both."""
        edge = door.buffers.output
        self.value, self.size, self.is_map = edge.value.clone(), size_of(edge), edge.spec.is_map
        self.changed = self.value.clone()
        generator = torch.Generator(self.value.device).manual_seed(0)
        noise = torch.randn(self.value.shape, device=self.value.device, generator=generator)
        spread, most = self.value.float().std(), torch.finfo(self.value.dtype).max
        other = self.value + noise * torch.where(spread > 0, spread, 1.0)
        self.other = other.clamp(-most, most).to(self.value.dtype)  # or it would be refused

    def change(self, side: float) -> None:
        """Take numbers over, in a rectangle with sides of so many parts of the map's.

        What is no map changes as a whole.
        """
        if not self.is_map:
            self.changed.copy_(self.other)
            return
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
        0 where dense is the faster for the least that was tried, and more than any share where it
        never is; nothing without a line.
    """
    shares, times = zip(*points, strict=True)
    if not shares[-1]:
        return None
    # More work takes no less time: what took longer than more work did was held up.
    times = tuple(min(times[i:]) for i in range(len(times)))
    if times[0] > dense:
        return 0.0
    if shares[-1] <= shares[0]:
        return None
    # The line that crosses, or that through all, further on.
    at = next((i for i, took in enumerate(times) if took > dense), 0)
    low, high = (at - 1, at) if at else (0, len(times) - 1)
    longer = times[high] - times[low]
    if longer <= 0:
        return ALWAYS_SPARSE
    return shares[low] + (dense - times[low]) * (shares[high] - shares[low]) / longer


@contextmanager
def _set_aside(context: Context) -> Iterator[None]:
    """Keep all values, and what frames have counted, marked and left to do."""
    state = context.state
    values = sorted((edge.value for edge in state.edges.values()
                     if isinstance(edge.value, Tensor)), key=torch.numel)
    whole = {value.untyped_storage().data_ptr(): value for value in values}  # no part of another
    kept: list[tuple[Tensor, Tensor]] = [(tensor, tensor.clone()) for tensor in (
        context.counters, context.totals, context.work, context.pending, state.masks,
        *whole.values())]
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
