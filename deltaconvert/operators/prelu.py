"""``x`` where positive, else ``weight * x``, with a trained weight a channel or for all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, is_activation=True)
def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Rectify each number, leaking a trained share of what is negative."""
    return F.prelu(x, weight)


@spelled(F.prelu, torch.prelu, "prelu")
def _function(input, weight):
    return call(prelu, input, weight)


@spelled_module(nn.PReLU)
def _module(module, attribute, input):
    return call(prelu, input, attribute("weight"))
