"""Padding by what a map itself holds, or by a number; channels may be padded by a number too.

Padding of rows and columns by zeros alone is `pad_zero`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.footprint import Footprint, gather
from deltaconvert.operators.pad_zero import pad_zero
from deltaconvert.operators.registry import (
    Refusal,
    Shapes,
    call,
    operator,
    spelled,
    spelled_module,
)

MODES = ("constant", "reflect", "replicate", "circular")


def _footprints(shapes: Shapes) -> list[Footprint]:
    left, right, top, bottom = shapes.params["padding"][:4]
    height, width = shapes.size_in()
    rows = _indices(height, (top, bottom), shapes.params["mode"])
    cols = _indices(width, (left, right), shapes.params["mode"])
    return [gather((height, width), rows, cols)]


def _indices(size: int, ends: tuple[int, int], mode: str) -> np.ndarray:
    """Ask PyTorch itself which index it reads; -1 where that is none."""
    ruler = torch.arange(size, dtype=torch.float64, device="cpu").view(1, 1, size, 1)
    value = -1.0 if mode == "constant" else None
    return F.pad(ruler, (0, 0, *ends), mode, value).flatten().long().numpy()


def _picked(x: Tensor, *, padding: tuple[int, ...], mode: str, value: float) -> Tensor:
    """Take what the footprint picked, the number where there is none; pad its channels."""
    return F.pad(x, (0, 0, 0, 0, *padding[4:]), value=value) if any(padding[4:]) else x


def _channels_first(x: Any, *, padding: tuple[int, ...], mode: str, value: float) -> Any:
    if mode != "constant":
        raise Refusal("padding by the map itself goes by rows and columns")
    channels, sides = padding[:2], (*padding[2:], *(0,) * (6 - len(padding)))
    return padded(x, (*sides, *channels) if any(channels) else sides, mode, value)


@operator(footprints=_footprints, pixelwise=_picked, moves_only=True,
          missing=lambda params: params["value"], channels_first=_channels_first)
def pad(x: Tensor, *, padding: tuple[int, ...], mode: str, value: float) -> Tensor:
    """Put ``(left, right, top, bottom)`` pixels around a map, two more numbers for channels.

    Args:
        x: the map.
        padding: how many, negative ones crop.
        mode: ``"reflect"``, ``"replicate"``, ``"circular"``, or ``"constant"``.
        value: for ``"constant"``.
    """
    return F.pad(x, padding, mode, value if mode == "constant" else None)


@spelled(F.pad)
def _function(input, pad, mode="constant", value=None):
    if not isinstance(pad, (tuple, list)) or len(pad) not in (2, 4, 6) or mode not in MODES:
        raise Refusal(f"padding by {pad} with mode={mode!r} is not of rows, columns and channels",
                      "pad the last two dimensions of maps N x C x H x W")
    return padded(input, pad, mode, 0.0 if value is None else value)


def padded(input, padding, mode, value):
    """Describe a padding; a number that follows from shapes is still a node of the graph."""
    padding = (*padding, *(0,) * (4 - len(padding)))
    if mode == "constant" and value == 0 and len(padding) == 4:
        return call(pad_zero, input, padding=padding)
    return call(pad, input, padding=padding, mode=mode, value=float(value))


@spelled_module(nn.ConstantPad2d)
def _constant(module, attribute, input):
    return padded(input, module.padding, "constant", module.value)


@spelled_module(nn.ReflectionPad2d)
def _reflect(module, attribute, input):
    return padded(input, module.padding, "reflect", 0.0)


@spelled_module(nn.ReplicationPad2d)
def _replicate(module, attribute, input):
    return padded(input, module.padding, "replicate", 0.0)


@spelled_module(nn.CircularPad2d)
def _circular(module, attribute, input):
    return padded(input, module.padding, "circular", 0.0)
