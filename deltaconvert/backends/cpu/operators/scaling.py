"""What multiplies and shifts each channel by constants: ``x * scale + shift``.

A normalisation that no convolution took in, a layer's own scale, a picture's mean and deviation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltaconvert.nodes import DeltaNode, Slot


class Scaling(NamedTuple):
    """``x * scale + shift``.

    Args:
        x: the input that is scaled.
        scale, shift: float32 ``[C]``.
    """

    x: Slot
    scale: Tensor
    shift: Tensor


def scaling_of(node: DeltaNode) -> Scaling | None:
    """Return a node as a scaling, if it is one."""
    about = node.about
    spec, shape = about.inputs[0], about.output.shape
    if len(about.inputs) != 1 or shape is None or spec.shape != shape or len(shape) != 4:
        return None
    if about.function_name == "batch_norm":
        return _norm(*about.args, eps=about.params["eps"])
    if about.function_name not in _FORMULAS or about.params.get("rounding_mode") is not None:
        return None
    slots = [a for a in about.args if isinstance(a, Slot)]
    constants = [_of_channels(a, shape[1]) for a in about.args if not isinstance(a, Slot)]
    if len(slots) != 1 or len(constants) != 1 or constants[0] is None:
        return None
    first = isinstance(about.args[0], Slot)
    found = _FORMULAS[about.function_name](constants[0], about.params.get("alpha", 1), first)
    return found and Scaling(slots[0], *(numbers.float() for numbers in found))


def _of_channels(constant: Any, channels: int) -> Tensor | None:
    """Return float64 ``[C]`` where a constant is one number for each channel, or for all."""
    if isinstance(constant, int | float):
        return torch.full((channels,), constant, dtype=torch.float64, device="cpu")
    if not isinstance(constant, Tensor):
        return None
    by_channel = constant.shape[-3:] == (channels, 1, 1) and constant.numel() == channels
    if constant.dtype.is_complex or not (by_channel or constant.numel() == 1):
        return None
    return constant.detach().double().flatten().expand(channels)


def _norm(x: Slot, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *,
          eps: float) -> Scaling:
    scale = (var.detach().double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    shift = shift if bias is None else shift + bias.detach().double()
    return Scaling(x, scale.float(), shift.float())


Formula = tuple[Tensor, Tensor] | None


def _mul(constant: Tensor, alpha: float, first: bool) -> Formula:
    return constant, torch.zeros_like(constant)


def _div(constant: Tensor, alpha: float, first: bool) -> Formula:
    scale = 1 / constant
    overflows = scale.isfinite() & scale.float().isinf()
    return (scale, torch.zeros_like(constant)) if first and not overflows.any() else None


def _add(constant: Tensor, alpha: float, first: bool) -> Formula:
    scale = torch.full_like(constant, 1 if first else alpha)
    return scale, constant * (alpha if first else 1)


def _sub(constant: Tensor, alpha: float, first: bool) -> Formula:
    scale = torch.full_like(constant, 1 if first else -alpha)
    return scale, constant * (-alpha if first else 1)


_FORMULAS = {"mul": _mul, "div": _div, "add": _add, "sub": _sub}
