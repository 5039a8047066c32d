"""Pixels to channels, a square of ``r`` by ``r`` to one pixel: `pixel_shuffle` undone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, window
from deltaconvert.operators.registry import Shapes, call, operator, spelled, spelled_module


def _footprints(shapes: Shapes) -> list[Footprint]:
    square = (shapes.params["factor"],) * 2
    return [window(shapes.size_in(), shapes.size_out, square, square, (0, 0))]


def _squares(x: Tensor, *, factor: int) -> Tensor:
    return F.pixel_unshuffle(x, factor)


@operator(footprints=_footprints, pixelwise=_squares, moves_only=True)
def pixel_unshuffle(x: Tensor, *, factor: int) -> Tensor:
    """Put channel ``c`` at ``(y r + i, x r + j)`` to channel ``c r^2 + i r + j`` at ``(y, x)``."""
    return F.pixel_unshuffle(x, factor)


@spelled(torch.pixel_unshuffle)
def _function(input, downscale_factor):
    return call(pixel_unshuffle, input, factor=downscale_factor)


@spelled_module(nn.PixelUnshuffle)
def _module(module, attribute, input):
    return call(pixel_unshuffle, input, factor=module.downscale_factor)
