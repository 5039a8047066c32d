"""Channels to pixels, ``r`` times as many each way, as in super-resolution."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.registry import Shapes, call, operator, spelled, spelled_module


def _footprints(shapes: Shapes) -> list[Footprint]:
    height, width = shapes.size_out
    factor = shapes.params["factor"]
    return [gather(shapes.size_in(), np.arange(height) // factor, np.arange(width) // factor)]


@operator(footprints=_footprints, moves_only=True)
def pixel_shuffle(x: Tensor, *, factor: int) -> Tensor:
    """Put channel ``c r^2 + i r + j`` at ``(y, x)`` to channel ``c`` at ``(y r + i, x r + j)``."""
    return F.pixel_shuffle(x, factor)


@spelled(torch.pixel_shuffle)
def _function(input, upscale_factor):
    return call(pixel_shuffle, input, factor=upscale_factor)


@spelled_module(nn.PixelShuffle)
def _module(module, attribute, input):
    return call(pixel_shuffle, input, factor=module.upscale_factor)
