"""Normalisation of each channel by the channels beside it, of the same pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


@operator(pixelwise=True)
def local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Divide by ``(k + alpha * mean of the squares of size channels) ** beta``."""
    return F.local_response_norm(x, size, alpha, beta, k)


@spelled(F.local_response_norm)
def _function(input, size, alpha=1e-4, beta=0.75, k=1.0):
    return call(local_response_norm, input, size=size, alpha=alpha, beta=beta, k=k)


@spelled_module(nn.LocalResponseNorm)
def _module(module, attribute, input):
    return _function(input, module.size, module.alpha, module.beta, module.k)
