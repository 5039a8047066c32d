"""``x * sigmoid(x)``, also called swish."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def silu(x: Tensor) -> Tensor:
    """Multiply each number by its sigmoid."""
    return F.silu(x)


@spelled(F.silu)
def _function(input, inplace=False):
    return call(silu, input)


@spelled_module(nn.SiLU)
def _module(module, attribute, input):
    return call(silu, input)
