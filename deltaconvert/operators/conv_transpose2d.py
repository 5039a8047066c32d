"""Transposed convolution, with output padding."""

from __future__ import annotations

import math
import operator as operator_

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, identity, transposed_window
from deltaconvert.operators.conv2d import pair
from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.registry import (
    Pair,
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
    padding = module.output_padding if output_size is None else tuple(
        _padding(module, input, output_size, dim) for dim in (-2, -1))
    return _function(input, attribute("weight"), attribute("bias"), module.stride,
                     module.padding, padding, module.groups, module.dilation)


def _padding(module, input, output_size, dim):
    """Return what is missing to an output size, which may follow from shapes that are not known."""
    stride, taps = module.stride[dim], module.dilation[dim] * (module.kernel_size[dim] - 1) + 1
    size_in = call(operator_.getitem, call(getattr, input, "shape"), dim)
    least = call(operator_.add, call(operator_.mul, size_in, stride),
                 taps - stride - 2 * module.padding[dim])
    wanted = output_size[dim] if isinstance(output_size, (list, tuple)) else call(
        operator_.getitem, output_size, dim)
    return call(operator_.sub, wanted, least)
