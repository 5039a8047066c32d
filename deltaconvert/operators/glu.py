"""The first half of the channels, gated by the sigmoid of the second."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module
from deltaconvert.operators.softmax import not_over_channels, over_channels_last


@operator(pixelwise=True, not_local=not_over_channels("a gate"),
          channels_first=lambda x, *, dim: call(glu, x, dim=over_channels_last(dim)))
def glu(x: Tensor, *, dim: int) -> Tensor:
    """Halve ``dim``, multiplying one half by the sigmoid of the other."""
    return F.glu(x, dim)


@spelled(F.glu)
def _function(input, dim=-1):
    return call(glu, input, dim=dim)


@spelled_module(nn.GLU)
def _module(module, attribute, input):
    return call(glu, input, dim=module.dim)
