"""Swin's patch merging: each square of 2 by 2 pixels becomes one, with their channels joined.

``patch_merging`` is torchvision's function, on ``... x H x W x C``. On maps it becomes
``patch_merging2d``, the same on ``N x C x H x W``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.footprint import Footprint, window
from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST
from deltaconvert.operators.registry import Shapes, call, operator, spelled

SQUARE = (2, 2)


def _footprints(shapes: Shapes) -> list[Footprint]:
    return [window(shapes.size_in(), shapes.size_out, SQUARE, SQUARE, (0, 0))]


@operator(footprints=_footprints, pixelwise=True, moves_only=True)
def patch_merging2d(x: Tensor) -> Tensor:
    """Join the channels of each square, column by column; what is missing of one is zeros."""
    return patch_merging(x.permute(CHANNELS_LAST)).permute(CHANNELS_FIRST)


@operator(rule="global", moves_only=True, channels_first=lambda x: call(patch_merging2d, x))
def patch_merging(x: Tensor) -> Tensor:
    """Do so for ``... x H x W x C``."""
    x = F.pad(x, (0, 0, 0, x.shape[-2] % 2, 0, x.shape[-3] % 2))
    corners = [x[..., row::2, col::2, :] for col in (0, 1) for row in (0, 1)]
    return torch.cat(corners, -1)


@spelled("torchvision.models.swin_transformer._patch_merging_pad")
def _function(x):
    return call(patch_merging, x)
