"""The mean of each of a fixed number of regions; of the whole map, for one."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, ranges
from deltaconvert.operators.conv2d import pair
from deltaconvert.operators.registry import Shapes, call, operator, spelled, spelled_module


def regions(shapes: Shapes) -> list[Footprint]:
    """Return the taps of adaptive pooling: from ``floor(i*n/m)`` to ``ceil((i+1)*n/m)``."""
    starts, ends = [], []
    for size, out in zip(shapes.size_in(), shapes.size_out, strict=True):
        index = np.arange(out)
        starts.append(index * size // out)
        ends.append(-(-(index + 1) * size // out))
    return [ranges(shapes.size_in(), starts, ends)]


def whole_map(shapes: Shapes) -> str | None:
    """Say that pooling to one pixel reads everything."""
    one = shapes.size_out == (1, 1) and shapes.size_in() != (1, 1)
    return "pooling to one pixel reads the whole map" if one else None


@operator(footprints=regions, not_local=whole_map)
def adaptive_avg_pool2d(x: Tensor, *, output_size: tuple[int | None, int | None]) -> Tensor:
    """Average as many regions as asked for."""
    return F.adaptive_avg_pool2d(x, output_size)


@spelled(F.adaptive_avg_pool2d)
def _function(input, output_size):
    return call(adaptive_avg_pool2d, input, output_size=pair(output_size))


@spelled_module(nn.AdaptiveAvgPool2d)
def _module(module, attribute, input):
    return _function(input, module.output_size)
