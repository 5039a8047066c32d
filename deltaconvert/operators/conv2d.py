"""Convolution: any kernel size, stride, dilation and groups.

What pads with something else than zeros becomes a `pad` with a convolution behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from deltaconvert.footprint import Footprint, identity, window
from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.pad import pad
from deltaconvert.operators.pad_zero import pad_zero
from deltaconvert.operators.registry import (
    Call,
    Pair,
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
    if isinstance(value, (fx.Node, Call)):
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
    if padding == "same":  # known with the weight's shape
        input = call(pad_zero, input, padding=call(behind_same, weight, pair(dilation)))
        padding = call(before_same, weight, pair(dilation))
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
        padding, behind = _same(module.kernel_size, module.dilation)
        if any(behind):
            input = call(pad_zero, input, padding=behind)
    return _call(input, attribute("weight"), attribute("bias"), module.stride,
                 0 if padding == "valid" else padding, module.dilation, module.groups)


def before_same(weight: Tensor, dilation: Pair) -> Pair:
    """Return the rows and columns of zeros on both sides that ``padding="same"`` means."""
    return _same(weight.shape[2:], dilation)[0]


def behind_same(weight: Tensor, dilation: Pair) -> tuple[int, int, int, int]:
    """Return what it pads more on the right and below, for kernels of even sizes, as `pad_zero`."""
    return _same(weight.shape[2:], dilation)[1]


def _same(kernel: Sequence[int], dilation: Pair) -> tuple[Pair, tuple[int, int, int, int]]:
    rows, cols = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return (rows // 2, cols // 2), (0, cols % 2, 0, rows % 2)


def _call(input, weight, bias, stride, padding, dilation, groups) -> Any:
    return call(conv2d, input, weight, bias, None, stride=pair(stride), padding=pair(padding),
                dilation=pair(dilation), groups=groups)
