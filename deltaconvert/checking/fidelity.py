"""How far a converted network is off over a clip: what a search for thresholds asks.

A speed-up says nothing without the error that it was bought with.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deltaconvert.checking.law import inputs_of
from deltaconvert.outputs import mean_square, tensors
from deltaconvert.work import ratio

Frame = Tensor | Sequence[Tensor]
Run = Callable[..., Any]


class Judge(Protocol):
    """What a search asks of a network that runs a clip.

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

    def worst_error(self, run: Run, stop_above: float = math.inf,
                    most_frames: int | None = None) -> float:
        """Run the clip, or its first frames, and return the error.

        Args:
            run: a stream at its first frame: called with each frame's inputs.
            stop_above: an error above it may be returned as soon as it is sure.
            most_frames: no more than these.
        """


@dataclass(frozen=True)
class _Output:
    """One output of the dense network over the clip."""

    frames: list[Tensor]
    rms: float
    frozen: float  # relative RMS


class Truth:
    """The dense network's outputs on a clip, to hold many settings against."""

    def __init__(self, model: nn.Module, frames: Sequence[Frame], error: float = 0.01,
                 of_frozen: float = 0.1) -> None:
        """Run the dense network over the clip.

        Args:
            model: in eval mode.
            frames: each what the model takes, ``[N, C, H, W]``, or a tuple of inputs.
            error: the most that a frame may be off: its RMS error over the output's RMS in the
                clip.
            of_frozen: the same, of what an output is off that stays as in frame 0: where next
                to nothing moves, nothing is no answer.
        """
        self.frames = list(inputs_of(frames))
        with torch.inference_mode():
            answers = [tensors(model(*frame)) for frame in self.frames]
        self.outputs = [_Output(list(clip), *_sizes(clip)) for clip in zip(*answers, strict=True)]
        self.allowed = min(error, of_frozen * self.frozen)

    @property
    def frozen(self) -> float:
        """The frozen output's relative RMS error; the least of the outputs that change."""
        return min((o.frozen for o in self.outputs if o.frozen > 0), default=0.0)

    @property
    def tolerance(self) -> float | None:
        """The same, for the check; where nothing changes, what is usual at threshold 0."""
        return self.allowed or None

    @property
    def goal(self) -> str:
        """What is allowed, in words."""
        return f"an error of at most {self.allowed:.2%} in every frame"

    def worst_error(self, run: Run, stop_above: float = math.inf,
                    most_frames: int | None = None) -> float:
        """Return the largest relative RMS error of a frame, or the first above a limit."""
        worst = 0.0
        for index, frame in enumerate(self.frames[:most_frames]):
            worst = max(worst, self.error(index, tensors(run(*frame))))
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
