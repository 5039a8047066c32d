"""``1 / (1 + exp(-x))``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, channels_first=True, is_activation=True)
def sigmoid(x: Tensor) -> Tensor:
    """Squash each number to between 0 and 1."""
    return torch.sigmoid(x)


@spelled(torch.sigmoid, torch.sigmoid_, torch.special.expit, F.sigmoid, "sigmoid", "sigmoid_")
def _function(input):
    return call(sigmoid, input)


@spelled_module(nn.Sigmoid)
def _module(module, attribute, input):
    return call(sigmoid, input)
