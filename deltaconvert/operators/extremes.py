"""The larger and the smaller of two maps, number by number.

Of a map alone, over some dimensions, they are `amax` and `amin` in `reductions`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaconvert.operators.registry import call, operator, spelled


@operator(pixelwise=True, channels_first=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """Take the larger one; of numbers alone too, which shapes are."""
    return _extreme(torch.maximum, max, "min", x, y)


@operator(pixelwise=True, channels_first=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """Take the smaller one; of numbers alone too, which shapes are."""
    return _extreme(torch.minimum, min, "max", x, y)


def _extreme(of_tensors: Any, of_numbers: Any, end: str, x: Any, y: Any) -> Any:
    x, y = (y, x) if isinstance(y, Tensor) and not isinstance(x, Tensor) else (x, y)
    if not isinstance(x, Tensor):
        return of_numbers(x, y)
    return of_tensors(x, y) if isinstance(y, Tensor) else torch.clamp(x, **{end: y})


@spelled(torch.maximum, "maximum")
def _maximum(input, other):
    return call(maximum, input, other)


@spelled(torch.minimum, "minimum")
def _minimum(input, other):
    return call(minimum, input, other)
