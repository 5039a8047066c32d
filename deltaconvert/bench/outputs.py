"""How far one output is from another."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from deltaconvert.outputs import mean_square, tensors
from deltaconvert.work import ratio


def rounding_error(model: nn.Module, frame: Tensor, dtype: torch.dtype) -> float | None:
    """Return how far PyTorch is off a dense network's output in another precision.

    Relative RMS, of the output that is furthest off; nothing where it does not run so.
    """
    try:
        with torch.inference_mode():
            lowered = tensors(copy.deepcopy(model).to(dtype)(frame.to(dtype)))
            error = max((relative_rms(found, expected) for found, expected in zip(
                lowered, tensors(model(frame)), strict=True)), default=0.0)
    except Exception:  # not every model runs in another precision than its own
        return None
    return error if math.isfinite(error) else None


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """Return the RMS of the difference over the RMS of what was expected; NaN if either is.

    Shapes that differ are infinitely far.
    """
    if found.shape != expected.shape:
        return math.inf
    return ratio(math.sqrt(mean_square(found.double() - expected.double())),
                 math.sqrt(mean_square(expected)))
