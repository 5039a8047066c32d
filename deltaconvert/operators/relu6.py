"""``min(max(x, 0), 6)``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def relu6(x: Tensor) -> Tensor:
    """Rectify each number and cut it at 6."""
    return F.relu6(x)


@spelled(F.relu6)
def _function(input, inplace=False):
    return call(relu6, input)


@spelled_module(nn.ReLU6)
def _module(module, attribute, input):
    return call(relu6, input)
