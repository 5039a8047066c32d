"""Outputs as lists of tensors, and how far one is from another."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a model or a runtime returned, in order."""
    leaves = (torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
              for leaf in pytree.tree_leaves(output))
    return [leaf.detach() for leaf in leaves
            if isinstance(leaf, Tensor) and leaf.is_floating_point()]


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


def mean_square(value: Tensor) -> float:
    """Return the mean of the squares, in float64."""
    return float(value.double().square().mean()) if value.numel() else 0.0


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``; of nothing, 0 is 0 and anything else infinite."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """Return the RMS of the difference over the RMS of what was expected; NaN if either is.

    Shapes that differ are infinitely far.
    """
    if found.shape != expected.shape:
        return math.inf
    return ratio(math.sqrt(mean_square(found.double() - expected.double())),
                 math.sqrt(mean_square(expected)))
