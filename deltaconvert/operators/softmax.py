"""Softmax over the channels of each pixel, and its logarithm."""

from __future__ import annotations

from collections.abc import Callable

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

FIRST = (0, 2, 3, 1)  # where each dimension of N x H x W x C is in N x C x H x W


def not_over_channels(what: str) -> Callable[[Shapes], str | None]:
    """Return the rule of operators along ``dim``: local along the channels of a map."""
    def rule(shapes: Shapes) -> str | None:
        rank = len(shapes.output)
        if rank == 4 and shapes.params["dim"] % rank == 1:
            return None
        return f"{what} over another dimension than the channels mixes pixels"
    return rule


def over_channels_last(dim: int) -> int:
    """Return the dimension of ``N x C x H x W`` that is ``dim`` in ``N x H x W x C``."""
    return FIRST[dim % 4]


@operator(pixelwise=True, not_local=not_over_channels("softmax"),
          channels_first=lambda x, *, dim: call(softmax, x, dim=over_channels_last(dim)))
def softmax(x: Tensor, *, dim: int) -> Tensor:
    """Normalise exponentials along ``dim``."""
    return torch.softmax(x, dim)


@spelled(torch.softmax, F.softmax, "softmax")
def _function(input, dim=None, _stacklevel=3, dtype=None):
    _refuse(dim, dtype)
    return call(softmax, input, dim=dim)


@spelled_module(nn.Softmax, nn.Softmax2d)
def _module(module, attribute, input):
    return _function(input, _dim(module))


@operator(pixelwise=True, not_local=not_over_channels("softmax"),
          channels_first=lambda x, *, dim: call(log_softmax, x, dim=over_channels_last(dim)))
def log_softmax(x: Tensor, *, dim: int) -> Tensor:
    """Return the logarithm of the softmax along ``dim``."""
    return torch.log_softmax(x, dim)


@spelled(torch.log_softmax, F.log_softmax, "log_softmax")
def _log_function(input, dim=None, _stacklevel=3, dtype=None):
    _refuse(dim, dtype)
    return call(log_softmax, input, dim=dim)


@spelled_module(nn.LogSoftmax)
def _log_module(module, attribute, input):
    return _log_function(input, _dim(module))


def _dim(module: nn.Module) -> int | None:
    dim: int | None = -3 if isinstance(module, nn.Softmax2d) else module.dim  # type: ignore
    return dim


def _refuse(dim: int | None, dtype: torch.dtype | None) -> None:
    if dim is None or dtype is not None:
        raise Refusal("softmax without dim, or with another dtype", "give it dim=1, the channels")
