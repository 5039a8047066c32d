"""Nearest-neighbour resizing: every output pixel is one input pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import (
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)


def _footprints(shapes: Shapes) -> list[Footprint]:
    """Ask PyTorch itself which pixel it reads, so that its rounding is followed exactly."""
    height, width = shapes.size_in()
    params = shapes.params
    rows = resize_nearest(_ruler(height, 2), **_one_side(params, 0))
    cols = resize_nearest(_ruler(width, 3), **_one_side(params, 1))
    return [gather((height, width), rows.flatten().long().numpy(), cols.flatten().long().numpy())]


def _ruler(length: int, dim: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[dim] = length
    return torch.arange(length, dtype=torch.float64).view(shape)


def _one_side(params: dict[str, Any], side: int) -> dict[str, Any]:
    def only(pair: Sequence[float] | None, other: float) -> tuple[float, float] | None:
        return None if pair is None else (pair[0], other) if side == 0 else (other, pair[1])
    return {**params, "size": only(params["size"], 1),
            "scale_factor": only(params["scale_factor"], 1.0)}


def _same(x: Tensor, **params: object) -> Tensor:
    return x


@operator(footprints=_footprints, pixelwise=_same, moves_only=True)
def resize_nearest(x: Tensor, *, size: tuple[int, int] | None,
                   scale_factor: tuple[float, float] | None, exact: bool,
                   recompute_scale_factor: bool | None) -> Tensor:
    """Resize by repeating or dropping pixels."""
    return F.interpolate(x, size, scale_factor, "nearest-exact" if exact else "nearest",
                         recompute_scale_factor=recompute_scale_factor)


@spelled(F.interpolate)
def _function(input, size=None, scale_factor=None, mode="nearest", align_corners=None,
              recompute_scale_factor=None, antialias=False):
    if mode not in ("nearest", "nearest-exact"):
        raise Refusal(f"resizing with mode={mode!r}")
    return call(resize_nearest, input, size=_two(size), scale_factor=_two(scale_factor),
                exact=mode == "nearest-exact", recompute_scale_factor=recompute_scale_factor)


def _two(value):
    """Give height and width each their own; a shape still to be known stays as it is."""
    return (value, value) if isinstance(value, (int, float)) else value


@spelled(F.upsample)
def _upsample(input, size=None, scale_factor=None, mode="nearest", align_corners=None):
    return _function(input, size, scale_factor, mode, align_corners)


@spelled(F.upsample_nearest)
def _upsample_nearest(input, size=None, scale_factor=None):
    return _function(input, size, scale_factor)


@spelled_module(nn.Upsample, nn.UpsamplingNearest2d)
def _module(module, attribute, input):
    return _function(input, module.size, module.scale_factor, module.mode, module.align_corners,
                     module.recompute_scale_factor)
