"""Norms by the statistics of whole maps: group norm and instance norm.

Any change moves the statistics, and with them every pixel by a little. They run whole and
compare: what stays under the threshold is held back, pixel by pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.batch_norm import batch_norm
from deltaconvert.operators.registry import (
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)

ADVICE = ("none: a threshold here keeps small changes back; BatchNorm, trained in its place, would "
          "be local")


def _whole_map(shapes: Shapes) -> str:
    return "its statistics are of whole maps"


@operator(rule="global", not_local=_whole_map, advice=ADVICE)
def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, groups: int,
               eps: float) -> Tensor:
    """Normalise each group of channels of a lane by its own mean and variance.

    Of maps with their channels last PyTorch subtracts squares on a CPU, which cancels where a mean
    is larger than a deviation: at 50 times as large, the result is off by 2e-3. So the mean is
    taken off before, for which the norm is the same; a copy with channels first takes longer.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4 and (
            not x.is_contiguous()):
        mean = x.mean((2, 3)).unflatten(1, (groups, -1))
        x = x - mean.mean(2, keepdim=True).expand_as(mean).flatten(1)[..., None, None]
    return F.group_norm(x, groups, weight, bias, eps)


@spelled(F.group_norm)
def _group(input, num_groups, weight=None, bias=None, eps=1e-5):
    return call(group_norm, input, weight, bias, groups=num_groups, eps=eps)


@spelled(torch.group_norm)
def _torch_group(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    return _group(input, num_groups, weight, bias, eps)


@spelled_module(nn.GroupNorm)
def _group_module(module, attribute, input):
    return _group(input, module.num_groups, attribute("weight"), attribute("bias"), module.eps)


@operator(rule="global", not_local=_whole_map, advice=ADVICE)
def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float,
                  rank: int | None) -> Tensor:
    """Normalise each channel of a lane by its own mean and variance.

    ``rank`` is that of maps with lanes, where those without are taken too.
    """
    if rank is not None and x.dim() == rank - 1:
        return F.instance_norm(x[None], None, None, weight, bias, True, 0.0, eps)[0]
    return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)


@spelled(F.instance_norm)
def _instance(input, running_mean=None, running_var=None, weight=None, bias=None,
              use_input_stats=True, momentum=0.1, eps=1e-5, rank=None):
    if use_input_stats or running_mean is None:
        return call(instance_norm, input, weight, bias, eps=eps, rank=rank)
    return call(batch_norm, input, running_mean, running_var, weight, bias, eps=eps)


@spelled_module(nn.InstanceNorm2d)
def _instance_module(module, attribute, input):
    return _instance(input, attribute("running_mean"), attribute("running_var"),
                     attribute("weight"), attribute("bias"), not module.track_running_stats,
                     eps=module.eps, rank=4)
