"""``max(x, 0)``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def relu(x: Tensor) -> Tensor:
    """Rectify each number."""
    return torch.relu(x)


@spelled(torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
def _function(input, inplace=False):
    return call(relu, input)


@spelled_module(nn.ReLU)
def _module(module, attribute, input):
    return call(relu, input)
