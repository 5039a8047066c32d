"""Batch normalisation with running statistics, where it could not be folded away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.epilogue import Activation, finish
from deltaconvert.operators.registry import Refusal, call, operator, spelled, spelled_module


@operator(pixelwise=True, fuses=["activation"])
def batch_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
               *, eps: float, activation: Activation | None = None) -> Tensor:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias``, a channel at a time."""
    return finish(F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), None, activation)


@spelled(F.batch_norm)
def _function(input, running_mean, running_var, weight=None, bias=None, training=False,
              momentum=0.1, eps=1e-5):
    if training is not False or running_mean is None or running_var is None:
        raise Refusal("batch_norm with the batch's own statistics mixes pixels and lanes")
    return call(batch_norm, input, running_mean, running_var, weight, bias, eps=eps)


@spelled(torch.batch_norm)
def _torch(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    return _function(input, running_mean, running_var, weight, bias, training, momentum, eps)


@spelled_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
def _module(module, attribute, input):
    if module.running_mean is None:
        raise Refusal("BatchNorm without running statistics mixes pixels and lanes")
    return call(batch_norm, input, attribute("running_mean"), attribute("running_var"),
                attribute("weight"), attribute("bias"), eps=module.eps)
