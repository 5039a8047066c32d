"""What changes nothing in eval mode: it disappears from the graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from deltaconvert.operators.registry import Refusal, spelled, spelled_module


@spelled_module(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
                nn.AlphaDropout, nn.FeatureAlphaDropout)
def _module(module, attribute, input):
    return input


@spelled(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def _dropout(input, p=0.5, training=True, inplace=False):
    """Refuse what is active: ``F.dropout(x)`` is, unless told otherwise."""
    if training and p:
        raise Refusal("dropout that is active in eval mode: its result is random")
    return input


@spelled("contiguous", "detach", "clone", torch.clone, torch.detach, "requires_grad_")
def _copy(input, *args, memory_format=None):
    return input


@spelled("torchvision.ops.stochastic_depth.stochastic_depth")
def _stochastic_depth(input, p, mode, training=True):
    return _dropout(input, p, training)
