"""Transposed convolution, with output padding."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, identity, transposed_window
from deltaconvert.operators.conv2d import pair
from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.registry import (
    Pair,
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)


def _footprints(shapes: Shapes) -> list[Footprint]:
    params = shapes.params
    taps = transposed_window(shapes.size_in(), shapes.size_out,
                             shapes.kernel, params["stride"], params["padding"],
                             params["dilation"])
    return [taps, *(identity(shapes.size_out) for _ in shapes.inputs[1:])]


def _multiply_adds(shapes: Shapes) -> int:
    pixels_in, pixels_out = math.prod(shapes.size_in()), math.prod(shapes.size_out)
    return round(pixels_in * math.prod(shapes.constants["weight"]) / pixels_out)


@operator(footprints=_footprints, multiply_adds=_multiply_adds, fuses=["residual", "activation"])
def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None,
                     residual: Tensor | None = None, *, stride: Pair, padding: Pair,
                     output_padding: Pair, groups: int, dilation: Pair,
                     activation: Activation | None = None) -> Tensor:
    """Convolve transposed, add the residual, apply the activation."""
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return finish(y, residual, activation)


@spelled(F.conv_transpose2d)
def _function(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
              dilation=1):
    return call(conv_transpose2d, input, weight, bias, None, stride=pair(stride),
                padding=pair(padding), output_padding=pair(output_padding), groups=groups,
                dilation=pair(dilation))


@spelled_module(nn.ConvTranspose2d)
def _module(module, attribute, input, output_size=None):
    if output_size is not None:
        raise Refusal("a transposed convolution told its output size in the call",
                      "an output_padding of the module in its place")
    return _function(input, attribute("weight"), attribute("bias"), module.stride,
                     module.padding, module.output_padding, module.groups, module.dilation)
