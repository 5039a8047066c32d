"""Taking times so that they can be compared: in turns, settled, awake, with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# OpenMP's threads spin for some milliseconds behind a dense operator, on the cores that whoever
# is next needs.
SETTLE_S = 0.01


def settle() -> None:
    """Wait until the threads of whoever ran last are asleep."""
    time.sleep(SETTLE_S)


def ms_of(call: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Spread:
    """Samples summed up, in their own unit: percentiles by linear interpolation."""

    samples: int
    mean: float
    least: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up at least one sample."""
        ordered = sorted(samples)
        p5, p25, median, p75, p95, p99 = (
            percentile(ordered, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
        return cls(len(ordered), statistics.fmean(ordered), ordered[0], p5, p25, median, p75, p95,
                   p99, ordered[-1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return a percentile of numbers in ascending order."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@dataclass(frozen=True)
class Turn:
    """Somebody who takes part, and what a block of theirs is.

    Args:
        name: unique among those who take turns.
        step: one frame; which one is its own affair.
        untimed: steps at the beginning of a block that do not count: a core that slept takes a
            while to be itself again, and caches hold what others left.
        timed: steps that count.
        after: called after each timed step, outside its time.
    """

    name: str
    step: Callable[[], object]
    untimed: int
    timed: int
    after: Callable[[], object] | None = None

    def block(self) -> list[float]:
        """Take one turn; return the milliseconds of each timed step."""
        settle()
        for _ in range(self.untimed):
            self.step()
        times = []
        for _ in range(self.timed):
            times.append(ms_of(self.step))
            if self.after is not None:
                self.after()
        return times


def take_turns(turns: Sequence[Turn], rounds: int) -> dict[str, list[list[float]]]:
    """Let all take a block in each round, so that a drift of the machine's speed falls on all.

    Returns:
        by name, each round's milliseconds.
    """
    times: dict[str, list[list[float]]] = {turn.name: [] for turn in turns}
    for _ in range(rounds):
        for turn in turns:
            times[turn.name].append(turn.block())
    return times


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return the times of all rounds as one list."""
    return [ms for block in rounds for ms in block]


def ratios(slow: Sequence[Sequence[float]], fast: Sequence[Sequence[float]]) -> Spread:
    """Return the spread of ``slow / fast``, a ratio of medians for each round."""
    return Spread.of([statistics.median(a) / statistics.median(b)
                      for a, b in zip(slow, fast, strict=True)])
