"""One threshold for a fidelity: what makes the speed of two networks comparable.

A speed-up says nothing without the error that it was bought with. So the search takes the
largest threshold at which every frame of the clip is within `ALLOWED` of dense, relative to
the output's RMS, and within a tenth of what an output frozen at frame 0 would be off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from deltaconvert.bench.outputs import mean_square, ratio, tensors
from deltaconvert.module import DeltaModule

ALLOWED = 0.01
OF_FROZEN = 0.1
# Standard deviations. The lowest is far under what any network notices; each step of the
# bisection halves the exponent, so seven leave 5 % between what passed and what did not.
LEAST, MOST, STEPS = 2.0**-9, 1.0, 7


class Judge(Protocol):
    """What a search asks of a converted network.

    Attributes:
        goal: in words, for the tables.
        allowed: the largest error.
        tolerance: what the check may allow a frame, relative RMS; ``None`` where that is not
            what is judged.
    """

    @property
    def goal(self) -> str: ...

    @property
    def allowed(self) -> float: ...

    @property
    def tolerance(self) -> float | None: ...

    def worst_error(self, delta: DeltaModule, stop_above: float = math.inf) -> float:
        """Run a clip and return its error, or one above a limit as soon as it is sure."""


@dataclass(frozen=True)
class _Output:
    """One output of the dense network over the clip."""

    frames: list[Tensor]
    rms: float
    frozen: float  # relative RMS


@dataclass(frozen=True)
class Search:
    """What a search found.

    Args:
        threshold: in standard deviations; 0 where none passed.
        goal, allowed: the judge's.
        tried: threshold and error, in the order tried; a run may stop at the first frame that
            is too far off.
    """

    threshold: float
    goal: str
    allowed: float
    tried: list[tuple[float, float]] = field(default_factory=list)

    @property
    def error(self) -> float | None:
        """The judge's error at the threshold found; ``None`` where none passed."""
        return dict(self.tried).get(self.threshold)


class Truth:
    """The dense network's outputs on a clip, to hold many settings against."""

    def __init__(self, model: nn.Module, frames: Sequence[Tensor]) -> None:
        """Run the dense network over the clip."""
        with torch.inference_mode():
            answers = [tensors(model(frame)) for frame in frames]
        self.frames = frames
        self.outputs = [_Output(list(clip), *_sizes(clip)) for clip in zip(*answers, strict=True)]

    @property
    def frozen(self) -> float:
        """The frozen output's relative RMS error; the least of the outputs that change."""
        return min((o.frozen for o in self.outputs if o.frozen > 0), default=0.0)

    @property
    def allowed(self) -> float:
        """What a frame's error may be."""
        return min(ALLOWED, OF_FROZEN * self.frozen)

    @property
    def tolerance(self) -> float | None:
        """The same, for the check; where nothing changes, what is usual at threshold 0."""
        return self.allowed or None

    @property
    def goal(self) -> str:
        """What is allowed, in words."""
        return f"an error of at most {self.allowed:.2%} in every frame"

    def worst_error(self, delta: DeltaModule, stop_above: float = math.inf) -> float:
        """Return the largest relative RMS error of a frame, or the first above a limit."""
        stream, worst = delta.new_stream(), 0.0
        for index, frame in enumerate(self.frames):
            worst = max(worst, self.error(index, tensors(stream(frame))))
            if not worst <= stop_above:
                break
        return worst

    def error(self, index: int, found: Sequence[Tensor]) -> float:
        """Return how far one frame's outputs are off: the largest, relative to the clip's RMS."""
        errors = [ratio(math.sqrt(mean_square(f - o.frames[index])), o.rms)
                  for f, o in zip(found, self.outputs, strict=True)]
        return math.inf if any(map(math.isnan, errors)) else max(errors, default=0.0)


def _sizes(clip: Sequence[Tensor]) -> tuple[float, float]:
    rms = math.sqrt(statistics.fmean(mean_square(frame) for frame in clip))
    frozen = math.sqrt(statistics.fmean(mean_square(clip[0] - frame) for frame in clip))
    return rms, ratio(frozen, rms)


def find_threshold(delta: DeltaModule, judge: Judge,
                   say: Callable[[str], None] = lambda text: None) -> Search:
    """Bisect for the largest threshold whose error is within what is allowed.

    Args:
        delta: its settings are kept but for threshold, unit (standard deviations) and norm
            (RMS).
        judge: what an error is, and how large it may be.
        say: told each attempt.
    """
    low, high = math.log2(LEAST), math.log2(MOST)
    tried: list[tuple[float, float]] = []
    found, allowed = 0.0, judge.allowed
    for _ in range(STEPS):
        middle = (low + high) / 2
        threshold = float(f"{2**middle:.2g}")
        error = judge.worst_error(at_threshold(delta, threshold), stop_above=allowed)
        tried.append((threshold, error))
        passed = error <= allowed
        say(f"threshold {threshold:g} std: error {error:.2%}, {allowed:.2%} allowed")
        low, high = (middle, high) if passed else (low, middle)
        found = threshold if passed else found
    return Search(found, judge.goal, allowed, tried)


def at_threshold(delta: DeltaModule, threshold: float) -> DeltaModule:
    """Return the module with one threshold, in standard deviations, RMS norm."""
    return delta.with_config(delta.config.replace(
        threshold=threshold, threshold_unit="std", norm="rms"))
