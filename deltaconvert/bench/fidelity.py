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

import torch
from torch import Tensor, nn

from deltaconvert.bench.outputs import mean_square, ratio, tensors
from deltaconvert.module import DeltaModule

ALLOWED = 0.01
OF_FROZEN = 0.1
# Standard deviations. The lowest is far under what any network notices; each step of the
# bisection halves the exponent, so seven leave 5 % between what passed and what did not.
LEAST, MOST, STEPS = 2.0**-9, 1.0, 7


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
        allowed: the largest relative RMS error of a frame.
        frozen: that of the frozen output, over the clip; the least of the outputs that change
            at all.
        tried: threshold and worst error of a frame, in the order tried; a run stops at its
            first frame that is too far off.
    """

    threshold: float
    allowed: float
    frozen: float
    tried: list[tuple[float, float]] = field(default_factory=list)


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


def find_threshold(delta: DeltaModule, truth: Truth,
                   say: Callable[[str], None] = lambda text: None) -> Search:
    """Bisect for the largest threshold whose worst frame is within what is allowed.

    Args:
        delta: its settings are kept but for threshold, unit (standard deviations) and norm
            (RMS).
        truth: the clip with the dense outputs.
        say: told each attempt.
    """
    low, high = math.log2(LEAST), math.log2(MOST)
    search = Search(0.0, truth.allowed, truth.frozen)
    found = 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        threshold = float(f"{2**middle:.2g}")
        error = truth.worst_error(at_threshold(delta, threshold), stop_above=truth.allowed)
        search.tried.append((threshold, error))
        passed = error <= truth.allowed
        say(f"threshold {threshold:g} std: error {error:.2%}, {truth.allowed:.2%} allowed")
        low, high = (middle, high) if passed else (low, middle)
        found = threshold if passed else found
    return Search(found, search.allowed, search.frozen, search.tried)


def at_threshold(delta: DeltaModule, threshold: float) -> DeltaModule:
    """Return the module with one threshold, in standard deviations, RMS norm."""
    return delta.with_config(delta.config.replace(
        threshold=threshold, threshold_unit="std", norm="rms"))
