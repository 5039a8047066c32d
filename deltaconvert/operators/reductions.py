"""Reductions over some dimensions: sums, extremes, variances, norms.

Over the channels of a map they are local (attention over places, normalisation by hand);
over height and width they are global pooling. `mean` has a file of its own.
"""

from __future__ import annotations

import operator as python
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.operators.add import add
from deltaconvert.operators.extremes import maximum, minimum
from deltaconvert.operators.mean import ADVICE, dims_first, dims_of, mixes_pixels
from deltaconvert.operators.registry import Refusal, call, operator, spelled
from deltaconvert.operators.softmax import not_over_channels, over_channels_last
from deltaconvert.operators.stack import stacked

Dims = tuple[int, ...]
_SPLIT_MAP, _FEW_PARTS = 5, range(1, 5)


def _reduction(function):
    """Register a reduction with ``dim`` and ``keepdim`` among its settings."""
    return operator(pixelwise=True, not_local=mixes_pixels(f"a reduction ({function.__name__})"),
                    advice=ADVICE, channels_first=partial(dims_first, function))(function)


@_reduction
def sum(x: Tensor, *, dim: Dims, keepdim: bool) -> Tensor:
    """Add up; the parts of a split map, ``N x k x C x H x W``, one by one.

    In channels-last memory, PyTorch's own sum of these takes many times as long.
    """
    if (len(dim) == 1 and x.dim() == _SPLIT_MAP and x.shape[dim[0]] in _FEW_PARTS
            and x.dtype in (torch.float32, torch.float64)):
        total = reduce(python.add, x.unbind(dim[0]))
        return total.unsqueeze(dim[0]) if keepdim else total
    return torch.sum(x, list(dim), keepdim)


@_reduction
def amax(x: Tensor, *, dim: Dims, keepdim: bool) -> Tensor:
    """Take the largest number."""
    return torch.amax(x, list(dim), keepdim)


@_reduction
def amin(x: Tensor, *, dim: Dims, keepdim: bool) -> Tensor:
    """Take the smallest number."""
    return torch.amin(x, list(dim), keepdim)


@_reduction
def logsumexp(x: Tensor, *, dim: Dims, keepdim: bool) -> Tensor:
    """Return the logarithm of the sum of the exponentials."""
    return torch.logsumexp(x, list(dim), keepdim)


@_reduction
def var(x: Tensor, *, dim: Dims, keepdim: bool, correction: float) -> Tensor:
    """Return the variance, divided by the count less ``correction``."""
    return torch.var(x, list(dim), correction=correction, keepdim=keepdim)


@_reduction
def std(x: Tensor, *, dim: Dims, keepdim: bool, correction: float) -> Tensor:
    """Return the standard deviation, see `var`."""
    return torch.std(x, list(dim), correction=correction, keepdim=keepdim)


@_reduction
def vector_norm(x: Tensor, *, dim: Dims, keepdim: bool, ord: float) -> Tensor:
    """Return the ``ord``-norm."""
    return torch.linalg.vector_norm(x, ord, list(dim), keepdim)


@operator(pixelwise=True, not_local=not_over_channels("a normalisation"),
          channels_first=lambda x, *, dim, **settings: call(
              normalize, x, dim=over_channels_last(dim), **settings))
def normalize(x: Tensor, *, dim: int, p: float, eps: float) -> Tensor:
    """Divide by the p-norm over ``dim``."""
    return F.normalize(x, p, dim, eps)


@spelled(F.normalize)
def _normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
    if not isinstance(dim, int):
        raise Refusal("a normalisation over several dimensions")
    return call(normalize, input, dim=dim, p=p, eps=eps)


def _reduce(function, pairwise, input, dims, keepdim):
    """Call a reduction; of stacked maps it is the sum or extreme of two, again and again."""
    maps = stacked(input, dims, keepdim)
    return reduce(pairwise, maps) if maps else call(function, input, dim=dims,
                                                    keepdim=bool(keepdim))


@spelled(torch.sum, "sum")
def _sum(input, dim=None, keepdim=False, *, dtype=None):
    return _reduce(sum, partial(call, add, alpha=1), input, dims_of(dim, dtype), keepdim)


@spelled(torch.amax, "amax")
def _amax(input, dim=(), keepdim=False):
    return _reduce(amax, partial(call, maximum), input, dims_of(dim), keepdim)


@spelled(torch.amin, "amin")
def _amin(input, dim=(), keepdim=False):
    return _reduce(amin, partial(call, minimum), input, dims_of(dim), keepdim)


@spelled(torch.logsumexp, "logsumexp")
def _logsumexp(input, dim, keepdim=False):
    return call(logsumexp, input, dim=dims_of(dim), keepdim=bool(keepdim))


@spelled(torch.var, "var")
def _var(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return _spread(var, input, dim, unbiased, keepdim, correction)


@spelled(torch.std, "std")
def _std(input, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return _spread(std, input, dim, unbiased, keepdim, correction)


def _spread(function, input, dim, unbiased, keepdim, correction):
    if isinstance(dim, bool):
        raise Refusal("a variance over everything mixes lanes", "name the dimensions")
    less = int(unbiased) if correction is None else correction
    return call(function, input, dim=dims_of(dim), keepdim=bool(keepdim),
                correction=less)


@spelled(torch.norm, "norm")
def _norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if p == "nuc":
        raise Refusal("the nuclear norm")
    return call(vector_norm, input, dim=dims_of(dim, dtype), keepdim=bool(keepdim),
                ord=2 if p in ("fro", None) else p)


@spelled(torch.linalg.vector_norm)
def _vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    return call(vector_norm, x, dim=dims_of(dim, dtype), keepdim=bool(keepdim), ord=ord)


@spelled(torch.max, "max")
def _max(input, dim=None, keepdim=False, *, other=None):
    return _extreme(maximum, input, dim if other is None else other)


@spelled(torch.min, "min")
def _min(input, dim=None, keepdim=False, *, other=None):
    return _extreme(minimum, input, dim if other is None else other)


def _extreme(function, input, other):
    """Take the extreme of two maps; of one, with indices, it is read in `_part`."""
    if not isinstance(other, fx.Node):
        raise Refusal("an extreme together with its indices", "read the extreme alone, or use amax")
    return call(function, input, other)


@spelled(python.getitem)
def _part(input, index):
    """Read the extreme alone out of ``torch.max(x, dim)``, which has indices too."""
    return _values(input) if index == 0 and isinstance(input, fx.Node) else None


@spelled(getattr)
def _attribute(input, name):
    """Do the same by name."""
    return _values(input) if name == "values" and isinstance(input, fx.Node) else None


def _values(source):
    known = {torch.max: amax, "max": amax, torch.min: amin, "min": amin}
    function = known.get(source.target) if source.op != "call_module" else None
    given = dict(zip(("input", "dim", "keepdim"), source.args, strict=False)) | source.kwargs
    if function is None or not isinstance(given.get("dim"), int) or (
            not given.keys() <= {"input", "dim", "keepdim"}):
        return None
    return call(function, given["input"], dim=(given["dim"],),
                keepdim=bool(given.get("keepdim", False)))
