"""The largest number of each window; the padding is minus infinity, never a candidate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, window
from deltaconvert.operators.conv2d import pair
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
    return [window(shapes.size_in(), shapes.size_out, pair(params["kernel_size"]),
                   pair(params["stride"]), params["padding"], params["dilation"])]


@operator(footprints=_footprints)
def max_pool2d(x: Tensor, *, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair,
               ceil_mode: bool) -> Tensor:
    """Take the maximum over each window of each channel."""
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


@spelled(F.max_pool2d, torch.max_pool2d)
def _function(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
              return_indices=False):
    if return_indices:
        raise Refusal("max-pooling that also returns indices")
    return call(max_pool2d, input, kernel_size=pair(kernel_size),
                stride=pair(stride or kernel_size), padding=pair(padding),
                dilation=pair(dilation), ceil_mode=bool(ceil_mode))


@spelled_module(nn.MaxPool2d)
def _module(module, attribute, input):
    return _function(input, module.kernel_size, module.stride, module.padding, module.dilation,
                     module.ceil_mode, module.return_indices)
