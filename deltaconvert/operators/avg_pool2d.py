"""The mean of each window."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, window
from deltaconvert.operators.conv2d import pair
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
    return [window(shapes.size_in(), shapes.size_out, pair(params["kernel_size"]),
                   pair(params["stride"]), params["padding"])]


@operator(footprints=_footprints)
def avg_pool2d(x: Tensor, *, kernel_size: Pair, stride: Pair, padding: Pair, ceil_mode: bool,
               count_include_pad: bool, divisor_override: int | None) -> Tensor:
    """Average each window of each channel."""
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad,
                        divisor_override)


@spelled(F.avg_pool2d)
def _function(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
              divisor_override=None):
    return call(avg_pool2d, input, kernel_size=pair(kernel_size),
                stride=pair(stride or kernel_size), padding=pair(padding),
                ceil_mode=bool(ceil_mode), count_include_pad=bool(count_include_pad),
                divisor_override=divisor_override)


@spelled_module(nn.AvgPool2d)
def _module(module, attribute, input):
    return _function(input, module.kernel_size, module.stride, module.padding, module.ceil_mode,
                     module.count_include_pad, module.divisor_override)
