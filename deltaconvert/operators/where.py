"""Choosing and mixing: ``where``, ``masked_fill``, ``lerp``, ``addcmul``, ``addcdiv``."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.operators.registry import Refusal, call, operator, spelled


@operator(pixelwise=True, channels_first=True)
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take ``x`` where the condition holds, else ``y``."""
    return torch.where(condition, x, y)


@spelled(torch.where)
def _where(condition, input=None, other=None):
    if input is None or other is None:
        raise Refusal("the places where a condition holds, whose number depends on the frame")
    return call(where, condition, input, other)


@spelled("where")
def _method(input, condition, other):
    return call(where, condition, input, other)


@operator(pixelwise=True, channels_first=True)
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """Put a number where the mask holds."""
    return torch.masked_fill(x, mask, value)


@spelled(torch.masked_fill, "masked_fill", "masked_fill_")
def _masked_fill(input, mask, value):
    return call(masked_fill, input, mask, value)


@operator(pixelwise=True, channels_first=True)
def lerp(x: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Return ``x + share * (end - x)``."""
    return torch.lerp(x, end, share)


@spelled(torch.lerp, "lerp", "lerp_")
def _lerp(input, end, weight):
    return call(lerp, input, end, weight)


@operator(pixelwise=True, channels_first=True)
def addcmul(x: Tensor, one: Tensor, two: Tensor, *, value: float) -> Tensor:
    """Return ``x + value * one * two``."""
    return torch.addcmul(x, one, two, value=value)


@spelled(torch.addcmul, "addcmul", "addcmul_")
def _addcmul(input, tensor1, tensor2, *, value=1):
    return call(addcmul, input, tensor1, tensor2, value=value)


@operator(pixelwise=True, channels_first=True)
def addcdiv(x: Tensor, one: Tensor, two: Tensor, *, value: float) -> Tensor:
    """Return ``x + value * one / two``."""
    return torch.addcdiv(x, one, two, value=value)


@spelled(torch.addcdiv, "addcdiv", "addcdiv_")
def _addcdiv(input, tensor1, tensor2, *, value=1):
    return call(addcdiv, input, tensor1, tensor2, value=value)
