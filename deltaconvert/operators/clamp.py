"""``min(max(x, low), high)``, also called clip and Hardtanh."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deltaconvert.operators.extremes import maximum, minimum
from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True, is_activation=True, channels_first=True)
def clamp(x: Tensor, min: float | None, max: float | None) -> Tensor:
    """Cut each number at both ends; ``None`` is no end."""
    return torch.clamp(x, min, max)


@spelled(torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")
def _function(input, min=None, max=None):
    if not isinstance(min, fx.Node) and not isinstance(max, fx.Node):
        return call(clamp, input, min=min, max=max)
    for function, end in ((maximum, min), (minimum, max)):
        if end is not None:
            input = call(function, input, end)
    return input


@spelled(torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_")
def _low(input, min):
    return _function(input, min)


@spelled(torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_")
def _high(input, max):
    return _function(input, None, max)


@spelled(F.hardtanh, F.hardtanh_)
def _hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    return _function(input, min_val, max_val)


@spelled_module(nn.Hardtanh)
def _module(module, attribute, input):
    return _function(input, module.min_val, module.max_val)
