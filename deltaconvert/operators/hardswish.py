"""``x * min(max(x + 3, 0), 6) / 6``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def hardswish(x: Tensor) -> Tensor:
    """Swish each number, with straight lines for the sigmoid."""
    return F.hardswish(x)


@spelled(F.hardswish)
def _function(input, inplace=False):
    return call(hardswish, input)


@spelled_module(nn.Hardswish)
def _module(module, attribute, input):
    return call(hardswish, input)
