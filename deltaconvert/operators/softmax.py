"""Softmax over the channels of each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import (
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)


def _not_over_channels(shapes: Shapes) -> str | None:
    rank = len(shapes.output)
    if rank == 4 and shapes.params["dim"] % rank == 1:
        return None
    return "softmax over another dimension than the channels mixes pixels"


@operator(pixelwise=True, not_local=_not_over_channels)
def softmax(x: Tensor, *, dim: int) -> Tensor:
    """Normalise exponentials along ``dim``."""
    return torch.softmax(x, dim)


@spelled(torch.softmax, F.softmax, "softmax")
def _function(input, dim=None, _stacklevel=3, dtype=None):
    if dim is None or dtype is not None:
        raise Refusal("softmax without dim, or with another dtype")
    return call(softmax, input, dim=dim)


@spelled_module(nn.Softmax, nn.Softmax2d)
def _module(module, attribute, input):
    dim = -3 if isinstance(module, nn.Softmax2d) else module.dim
    return _function(input, dim)
