"""Reshapes that do not end in a map again: ``flatten`` in front of a classifier.

Those that do (a channel shuffle written as view, transpose, view) become `select`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaconvert.operators.registry import Refusal, call, operator, spelled, spelled_module


@operator(rule="global", moves_only=True)
def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Give the numbers another shape."""
    return x.reshape(shape)


@operator(rule="global", moves_only=True)
def flatten(x: Tensor, *, start_dim: int, end_dim: int) -> Tensor:
    """Join the dimensions from ``start_dim`` to ``end_dim``."""
    return torch.flatten(x, start_dim, end_dim)


@spelled(torch.reshape, "reshape", "view")
def _reshape(input, *sizes, shape=None):
    shape = shape if shape is not None else sizes[0] if len(sizes) == 1 else sizes
    if isinstance(shape, torch.dtype):
        raise Refusal("a view as another dtype")
    return call(reshape, input, shape=shape)


@spelled(torch.flatten, "flatten")
def _flatten(input, start_dim=0, end_dim=-1):
    return call(flatten, input, start_dim=start_dim, end_dim=end_dim)


@spelled_module(nn.Flatten)
def _module(module, attribute, input):
    return _flatten(input, module.start_dim, module.end_dim)
