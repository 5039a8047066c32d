"""The mean over some dimensions; over height and width it is global average pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaconvert.operators.registry import Refusal, Shapes, call, operator, spelled


def _mixes_pixels(shapes: Shapes) -> str | None:
    dims = {d % len(shapes.inputs[0]) for d in shapes.params["dim"]}
    local = dims == {1} and shapes.params["keepdim"]
    return None if local else "a mean over height or width reads the whole map"


@operator(pixelwise=True, not_local=_mixes_pixels)
def mean(x: Tensor, *, dim: Sequence[int], keepdim: bool) -> Tensor:
    """Average over the dimensions ``dim``."""
    return torch.mean(x, list(dim), keepdim)


@spelled(torch.mean, "mean")
def _function(input, dim=None, keepdim=False, *, dtype=None, axis=None):
    dim = dim if axis is None else axis
    if dim is None or dtype is not None:
        raise Refusal("a mean over everything mixes lanes")
    return call(mean, input, dim=(dim,) if isinstance(dim, int) else tuple(dim),
                keepdim=bool(keepdim))
