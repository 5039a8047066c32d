"""Every spelling of resizing: ``F.interpolate``, ``nn.Upsample`` and their relatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from deltaconvert.operators.adaptive_avg_pool2d import adaptive_avg_pool2d
from deltaconvert.operators.registry import Refusal, call, spelled, spelled_module
from deltaconvert.operators.resize import resize
from deltaconvert.operators.resize_nearest import resize_nearest


@spelled(F.interpolate)
def _function(input, size=None, scale_factor=None, mode="nearest", align_corners=None,
              recompute_scale_factor=None, antialias=False):
    size, scale_factor = _two(size), _floats(_two(scale_factor))
    if mode in ("nearest", "nearest-exact"):
        return call(resize_nearest, input, size=size, scale_factor=scale_factor,
                    exact=mode == "nearest-exact", recompute_scale_factor=recompute_scale_factor)
    if mode in ("bilinear", "bicubic"):
        return call(resize, input, size=size, scale_factor=scale_factor, mode=mode,
                    align_corners=bool(align_corners),
                    recompute_scale_factor=recompute_scale_factor, antialias=bool(antialias))
    if mode == "area" and size is not None:
        return call(adaptive_avg_pool2d, input, output_size=size)
    raise Refusal(f"resizing with mode={mode!r}", "resize maps bilinearly, bicubically, to the "
                  "nearest pixel, or to an area of a given size")


def _two(value):
    """Give height and width each their own; a shape still to be known stays as it is."""
    if isinstance(value, (int, float)):
        return value, value
    return tuple(value) if isinstance(value, list) else value


def _floats(scale):
    return tuple(map(float, scale)) if isinstance(scale, tuple) else scale


@spelled(F.upsample)
def _upsample(input, size=None, scale_factor=None, mode="nearest", align_corners=None):
    return _function(input, size, scale_factor, mode, align_corners)


@spelled(F.upsample_nearest)
def _upsample_nearest(input, size=None, scale_factor=None):
    return _function(input, size, scale_factor)


@spelled(F.upsample_bilinear)
def _upsample_bilinear(input, size=None, scale_factor=None):
    return _function(input, size, scale_factor, "bilinear", True)


@spelled_module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _module(module, attribute, input):
    return _function(input, module.size, module.scale_factor, module.mode, module.align_corners,
                     module.recompute_scale_factor)
