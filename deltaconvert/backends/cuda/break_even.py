"""From which share of the work on a frame is faster the dense way: measured, once a program.

Before its first graph, a stream runs both ways a few times, the sparse one with rectangles of
several sizes changing. Rules are told to let everything through meanwhile, but for what runs whole,
such as a gate: behind it all would change at once. The dense way comes last, and leaves values that
the law holds for with nothing left over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from deltaconvert.backends.cuda.context import Context
from deltaconvert.backends.cuda.sparsify import CudaSparsify
from deltaconvert.cuda.launcher import Launch
from deltaconvert.nodes import DeltaNode

SIDES = 1 / 8, 1 / 4, 1 / 2, 3 / 4  # of a rectangle, in parts of the frame's
ROUNDS = 3  # of which the first is not counted
ALWAYS = -1.0  # as a threshold
LEAST = 0.01

Timer = Callable[[Callable[[], None]], float]


def measured(context: Context, nodes: Sequence[DeltaNode], doors: Sequence[CudaSparsify],
             begin: Launch, sparse: Callable[[], None], dense: Callable[[], None],
             timer: Timer) -> float:
    """Run both ways, and return the share of the sparse one's work at which they are even.

    Args:
        context: of a stream behind a frame; its values may change within the law.
        nodes: all of the stream's.
        doors: the doors in.
        begin: what begins a frame.
        sparse, dense: what follows the doors.
        timer: runs a function, and returns how long it took.
    """
    def frame(way: Callable[[], None], side: float) -> float:
        context.launcher.launch(begin)
        for door in doors:
            door.let_in(side)
        return timer(way)

    with _set_aside(context, nodes):
        whole = min([frame(dense, 0.0) for _ in range(ROUNDS)][1:])
        points: list[tuple[float, float]] = []
        for side in SIDES:
            times = [frame(sparse, side) for _ in range(ROUNDS)][1:]
            points.append((float((context.counters * context.costs).sum()), min(times)))
            if points[-1][1] > whole:
                break
        frame(dense, 0.0)
    return even(points, whole)


def even(points: Sequence[tuple[float, float]], dense: float) -> float:
    """Return the share at which both ways take as long, by straight lines between points.

    Args:
        points: shares of the sparse way's work and how long it took, the smallest first.
        dense: how long the dense way took.
    """
    line = [(0.0, 0.0), *points]
    # That which crosses, or the last one and its line further on.
    at = next((i for i, (_, took) in enumerate(line) if took > dense), len(line) - 1)
    (share, took), (more, longer) = line[at - 1:at + 1]
    if longer <= took or more <= share:
        return math.inf
    return max(share + (dense - took) * (more - share) / (longer - took), LEAST)


@contextmanager
def _set_aside(context: Context, nodes: Sequence[DeltaNode]) -> Iterator[None]:
    """Let all changes through, and keep what a frame has counted and marked."""
    kept = [(tensor, tensor.clone()) for tensor in (
        context.thresholds, context.counters, context.state.masks)]
    context.thresholds.fill_(ALWAYS)
    for node in nodes:
        if node.about.rule != "local":
            context.thresholds_of(node.about.name).fill_(math.inf)
    try:
        yield
    finally:
        for tensor, before in kept:
            tensor.copy_(before)


def by_events(run: Callable[[], None]) -> float:
    """Return how many milliseconds the device took."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
