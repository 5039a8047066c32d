"""Normalisation of the last dimensions; of the channels of each pixel, it is local.

``layer_norm`` is PyTorch's, over the last dimensions. Where these are the channels of maps
``N x H x W x C``, it becomes ``layer_norm2d``, the same on ``N x C x H x W``; so do root mean
square norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST
from deltaconvert.operators.registry import (
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)

ADVICE = "over the channels of maps N x H x W x C alone it would be local"


@operator(pixelwise=True)
def layer_norm2d(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """Normalise the channels of each pixel."""
    last = x.permute(CHANNELS_LAST)
    return F.layer_norm(last, last.shape[3:], weight, bias, eps).permute(CHANNELS_FIRST)


@operator(pixelwise=True)
def rms_norm2d(x: Tensor, weight: Tensor | None, *, eps: float | None) -> Tensor:
    """Divide the channels of each pixel by their root mean square."""
    last = x.permute(CHANNELS_LAST)
    return F.rms_norm(last, last.shape[3:], weight, eps).permute(CHANNELS_FIRST)


def _over_rows(shapes: Shapes) -> str:
    return f"a norm over the last dimensions {list(shapes.params['shape'])} mixes pixels"


def _only_channels(shape):
    if len(shape) != 1:
        raise Refusal("a norm over more than the channels")


def _first(x, weight, bias, *, shape, eps):
    _only_channels(shape)
    return call(layer_norm2d, x, weight, bias, eps=eps)


@operator(rule="global", not_local=_over_rows, advice=ADVICE, channels_first=_first)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, shape: tuple[int, ...],
               eps: float) -> Tensor:
    """Normalise the last dimensions, which are of this shape."""
    return F.layer_norm(x, shape, weight, bias, eps)


@spelled(F.layer_norm)
def _function(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return call(layer_norm, input, weight, bias, shape=_shape(normalized_shape), eps=eps)


@spelled(torch.layer_norm)
def _torch(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return _function(input, normalized_shape, weight, bias, eps)


@spelled_module(nn.LayerNorm)
def _module(module, attribute, input):
    return _function(input, module.normalized_shape, attribute("weight"), attribute("bias"),
                     module.eps)


def _rms_first(x, weight, *, shape, eps):
    _only_channels(shape)
    return call(rms_norm2d, x, weight, eps=eps)


@operator(rule="global", not_local=_over_rows, advice=ADVICE, channels_first=_rms_first)
def rms_norm(x: Tensor, weight: Tensor | None, *, shape: tuple[int, ...],
             eps: float | None) -> Tensor:
    """Divide the last dimensions by their root mean square."""
    return F.rms_norm(x, shape, weight, eps)


@spelled(F.rms_norm, torch.rms_norm)
def _rms_function(input, normalized_shape, weight=None, eps=None):
    return call(rms_norm, input, weight, shape=_shape(normalized_shape), eps=eps)


@spelled_module(nn.RMSNorm)
def _rms_module(module, attribute, input):
    return _rms_function(input, module.normalized_shape, attribute("weight"), module.eps)


def _shape(shape):
    """Return a shape as a tuple; one that follows from shapes is still a node of the graph."""
    return (shape,) if isinstance(shape, int) else (
        tuple(shape) if isinstance(shape, (list, tuple)) else shape)
