"""The largest number of each of a fixed number of regions; of the whole map, for one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.adaptive_avg_pool2d import regions, whole_map
from deltaconvert.operators.conv2d import pair
from deltaconvert.operators.registry import Refusal, call, operator, spelled, spelled_module


@operator(footprints=regions, not_local=whole_map)
def adaptive_max_pool2d(x: Tensor, *, output_size: tuple[int | None, int | None]) -> Tensor:
    """Take the maximum of as many regions as asked for."""
    pooled: Tensor = F.adaptive_max_pool2d(x, output_size)  # type: ignore[arg-type]
    return pooled


@spelled(F.adaptive_max_pool2d)
def _function(input, output_size, return_indices=False):
    if return_indices:
        raise Refusal("max-pooling that also returns indices")
    return call(adaptive_max_pool2d, input, output_size=pair(output_size))


@spelled_module(nn.AdaptiveMaxPool2d)
def _module(module, attribute, input):
    return _function(input, module.output_size, module.return_indices)
