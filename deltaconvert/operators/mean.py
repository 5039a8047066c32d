"""The mean over some dimensions; over height and width it is global average pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from deltaconvert.operators.add import add
from deltaconvert.operators.div import div
from deltaconvert.operators.registry import Call, Refusal, Shapes, call, operator, spelled
from deltaconvert.operators.softmax import over_channels_last
from deltaconvert.operators.stack import stacked

ADVICE = ("over the channels alone, with keepdim, it would be local; over the whole map it is one "
          "pixel, and its threshold keeps small changes back")


def mixes_pixels(what: str) -> Callable[[Shapes], str | None]:
    """Return the rule of reductions: local over the channels of a map that stays a map."""
    def rule(shapes: Shapes) -> str | None:
        dims = {d % len(shapes.inputs[0]) for d in shapes.params["dim"]}
        local = dims == {1} and shapes.params["keepdim"]
        return None if local else f"{what} over height or width reads the whole map"
    return rule


def dims_first(function: Callable[..., Tensor], x: Any, *, dim: Sequence[int], keepdim: bool,
               **settings: Any) -> Call:
    """Write a reduction of ``N x H x W x C`` as that of ``N x C x H x W``.

    Raises:
        Refusal: where no map is left.
    """
    if not keepdim:
        raise Refusal("the reduced dimensions are dropped")
    return call(function, x, dim=tuple(over_channels_last(d) for d in dim), keepdim=True,
                **settings)


def dims_of(dim: int | Sequence[int] | None, dtype: torch.dtype | None = None
            ) -> tuple[int, ...]:
    """Return the dimensions of a reduction as a tuple.

    Raises:
        Refusal: for none, which is all of them, lanes included; and for another dtype.
    """
    if dim is None or dtype is not None or dim == ():
        raise Refusal("a reduction over everything mixes lanes", "name the dimensions")
    return (dim,) if isinstance(dim, int) else tuple(dim)


@operator(pixelwise=True, not_local=mixes_pixels("a mean"), advice=ADVICE,
          channels_first=lambda x, **params: dims_first(mean, x, **params))
def mean(x: Tensor, *, dim: Sequence[int], keepdim: bool) -> Tensor:
    """Average over the dimensions ``dim``."""
    return torch.mean(x, list(dim), keepdim)


@spelled(torch.mean, "mean")
def _function(input, dim=None, keepdim=False, *, dtype=None):
    dims = dims_of(dim, dtype)
    maps = stacked(input, dims, keepdim)
    if maps:
        return call(div, reduce(partial(call, add, alpha=1), maps), len(maps), rounding_mode=None)
    return call(mean, input, dim=dims, keepdim=bool(keepdim))
