"""Frames for a benchmark: a clip in a model's terms, and pictures that have nothing in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deltaconvert.bench.networks import UNRELATED_FRAMES
from deltaconvert.clips import synthetic

# Far from the seeds that people give.
_SEED = 1_000_000


def unrelated(size: tuple[int, int], prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return pictures of which everything differs, pixel by pixel, as frames.

    Args:
        size: H and W in pixels.
        prepare: turns an RGB picture ``[3, H, W]`` with values from 0 to 1 into a frame.
    """
    return [prepare(next(iter(synthetic(size, 1, active_share=0, seed=_SEED + index))))
            for index in range(UNRELATED_FRAMES)]
