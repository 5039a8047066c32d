"""A matrix multiplication behind a flattened map."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import Shapes, call, operator, spelled, spelled_module


def _multiply_adds(shapes: Shapes) -> int:
    """Of a lane: every row of the batch element times the matrix."""
    rows = math.prod(shapes.output[1:-1])
    return rows * math.prod(shapes.constants["weight"])


@operator(rule="global", multiply_adds=_multiply_adds)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the last dimension by the matrix."""
    return F.linear(x, weight, bias)


@spelled(F.linear)
def _function(input, weight, bias=None):
    return call(linear, input, weight, bias)


@spelled_module(nn.Linear)
def _module(module, attribute, input):
    return call(linear, input, attribute("weight"), attribute("bias"))
