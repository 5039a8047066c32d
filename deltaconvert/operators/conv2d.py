"""Convolution: any kernel size, stride, dilation and groups.

What pads with something else than zeros becomes a `pad` with a convolution behind it.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from deltaconvert.footprint import Footprint, identity, window
from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.pad import pad
from deltaconvert.operators.pad_zero import pad_zero
from deltaconvert.operators.registry import (
    Pair,
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)


def pair(value: Any) -> Any:
    """Return a setting of height and width as PyTorch spells it, as a pair.

    What is computed from a frame's size (``x.size()[2:]``) stays a node until that is known.
    """
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, int):
        return value, value
    if len(value) == 1:
        return value[0], value[0]
    first, second = value
    return first, second


def footprints(shapes: Shapes) -> list[Footprint]:
    """Return the window of the map, and the residual's own place."""
    params = shapes.params
    map_taps = window(shapes.size_in(), shapes.size_out, shapes.kernel, params["stride"],
                      params["padding"], params["dilation"])
    return [map_taps, *(identity(shapes.size_out) for _ in shapes.inputs[1:])]


def multiply_adds(shapes: Shapes) -> int:
    """Return the multiply-adds of an output pixel: the filter's numbers."""
    return math.prod(shapes.constants["weight"])


@operator(footprints=footprints, multiply_adds=multiply_adds, fuses=["residual", "activation"])
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *,
           stride: Pair, padding: Pair, dilation: Pair, groups: int,
           activation: Activation | None = None) -> Tensor:
    """Convolve, add the residual, apply the activation."""
    return finish(F.conv2d(x, weight, bias, stride, padding, dilation, groups),
                  residual, activation)


@spelled(F.conv2d)
def _function(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if padding == "same":
        raise Refusal("F.conv2d with padding='same' hides its padding; nn.Conv2d does not")
    return _call(input, weight, bias, stride, 0 if padding == "valid" else padding, dilation,
                 groups)


@spelled_module(nn.Conv2d)
def _module(module, attribute, input):
    padding = module.padding
    if module.padding_mode != "zeros":
        ends = module._reversed_padding_repeated_twice
        input, padding = call(pad, input, padding=tuple(ends), mode=module.padding_mode,
                              value=0.0), 0
    elif padding == "same":
        ends = [_same(k, d) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        padding = tuple(before for before, _ in ends)
        if any(before != after for before, after in ends):
            extra = tuple(after - before for before, after in ends)
            input = call(pad_zero, input, padding=(0, extra[1], 0, extra[0]))
    return _call(input, attribute("weight"), attribute("bias"), module.stride,
                 0 if padding == "valid" else padding, module.dilation, module.groups)


def _same(kernel: int, dilation: int) -> Pair:
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def _call(input, weight, bias, stride, padding, dilation, groups) -> Any:
    return call(conv2d, input, weight, bias, None, stride=pair(stride), padding=pair(padding),
                dilation=pair(dilation), groups=groups)
