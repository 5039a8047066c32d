"""From ATen's operators, which exported programs are made of, to the functions they mean.

Before: ``torch.ops.aten.upsample_nearest2d.vec(x, None, [2.0, 2.0])``, ``aten.relu_(x)``.
After: ``F.interpolate(x, None, [2.0, 2.0], "nearest")``, ``x.relu_()``: spellings like those
of any model's source, so `normalize` needs no word about ATen.

Most operators of ATen are a function or a method of PyTorch by the same name and with the
same arguments. Those that are not have an adapter here, with the arguments of the ATen
schema. As programs come from files, what a file may name (`graph_json`) or an operator is
spelled by is all that is ever looked up.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.graph_json.allowed import OPERATOR, WRITES, functions, methods
from deltaconvert.operators import registry
from deltaconvert.passes.functionalize import out_of_place, set_item

LARGEST = (1 << 63) - 1  # how ATen spells "to the end"

# Checks of numbers and shapes, which have nothing to compute.
CHECKS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata",
                    "sym_constrain_range", "sym_constrain_range_for_size"})

# Settings of where a new tensor lies, which are the defaults.
PLACEMENT = frozenset({"layout", "pin_memory"})

RENAMED = {
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d", "_prelu_kernel": "prelu",
    "_unsafe_view": "view", "alias": "detach",
    "lift_fresh_copy": "clone", "lift_fresh": "detach", "sym_numel": "numel",
    "sym_size": "size", "split_with_sizes": "split", "unsafe_split": "split",
}


class NoMeaning(Exception):
    """An operator of ATen has no counterpart that may be called, and why."""


@dataclass(frozen=True)
class Meaning:
    """A call of a function, or of a method by its name.

    Args:
        target: what is called.
        args, kwargs: its arguments.
        first: ATen's operator returns several tensors, this is the first of them.
    """

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: bool = False


def meaning(name: str, given: dict[str, Any], only_first: bool) -> Meaning | None:
    """Return what a call of ``aten::name`` means.

    Args:
        name: without its overload, which the arguments tell as well.
        given: the arguments by their names in the schema.
        only_first: of several results none but the first is read.

    Returns:
        The call; ``None`` for a check, which computes nothing.

    Raises:
        NoMeaning: where there is no such function, or none that a file may name.
    """
    if name in CHECKS:
        return None
    if name in ADAPTERS:
        try:
            return ADAPTERS[name](**given)
        except TypeError as error:
            raise NoMeaning(f"its arguments are not known ({error})") from None
    if name in OF_SEVERAL and only_first:
        return OF_SEVERAL[name](**given)
    if name.endswith("_") and not name.endswith("__"):
        return _in_place(name, given)
    target = _counterpart(RENAMED.get(name, name))
    kept = {key: value for key, value in given.items() if key not in PLACEMENT}
    return _call(target, kept)


def of_numbers(name: str, args: tuple[Any, ...]) -> Meaning:
    """Return what an operator of Python's, on sizes, means: ``_operator.mul``, ``math.ceil``."""
    home, _, last = name.rpartition(".")
    if home == "_operator" and last in OPERATOR:
        return Meaning(getattr(operator, last), args, {})
    if home == "math" and f"math.{last}" in functions():
        return Meaning(getattr(math, last), args, {})
    raise NoMeaning("it is no operator on tensors or numbers that deltaconvert knows")


def _call(target: Callable[..., Any] | str, given: dict[str, Any]) -> Meaning:
    """Call by position, as schema and function need not agree on names, but for keywords."""
    keywords = {key: given.pop(key) for key in KEYWORD_ONLY if key in given}
    return Meaning(target, tuple(given.values()), keywords)


KEYWORD_ONLY = ("dtype", "alpha", "rounding_mode", "memory_format", "approximate", "device",
                "correction", "value", "beta", "indexing")


def _counterpart(name: str) -> Callable[..., Any] | str:
    """Return PyTorch's function or method of a name: best one that spells an operator.

    Functions of ``torch`` and methods have ATen's own arguments, those of
    ``torch.nn.functional`` mostly.
    """
    found: list[Callable[..., Any] | str] = []
    if f"torch.{name}" in functions() or registry.spelling(getattr(torch, name, "")):
        found.append(getattr(torch, name))
    if name in methods() or (registry.spelling(name) and hasattr(Tensor, name)):
        found.append(name)
    if f"torch.nn.functional.{name}" in functions() or registry.spelling(getattr(F, name, "")):
        found.append(getattr(F, name))
    if not found:
        raise NoMeaning("it is not among the pure tensor functions that a file may name")
    return next((f for f in found if registry.spelling(f)), found[0])


def _in_place(name: str, given: dict[str, Any]) -> Meaning:
    base = name[:-1]
    if hasattr(Tensor, name) and (name in WRITES or base in methods() or registry.spelling(base)):
        return _call(name, dict(given))
    if base in ADAPTERS:
        meant = ADAPTERS[base](**given)
        return Meaning(meant.target, meant.args, {**meant.kwargs, "inplace": True})
    return Meaning(_counterpart(base), tuple(given.values()), {"inplace": True})


# --- adapters: the arguments are those of ATen's schema ---------------------------------

Adapter = Callable[..., Meaning]
ADAPTERS: dict[str, Adapter] = {}
OF_SEVERAL: dict[str, Adapter] = {}  # where nothing but the first result is read


def _function(target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Meaning:
    return Meaning(target, args, kwargs)


def _adapter(*names: str, table: dict[str, Adapter] = ADAPTERS) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        for name in names:
            table[name] = adapter
        return adapter
    return register


@_adapter("convolution", "_convolution")
def _convolution(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int, **how: Any) -> Meaning:
    rank = len(stride)
    if transposed:
        up = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return _function(up, input, weight, bias, stride, padding, output_padding, groups,
                         dilation)
    down = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return _function(down, input, weight, bias, stride, padding, dilation, groups)


@_adapter("_native_batch_norm_legit_no_training", table=OF_SEVERAL)
def _of_batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
                   momentum: float, eps: float) -> Meaning:
    return Meaning(F.batch_norm, (input, running_mean, running_var, weight, bias, False, momentum,
                                  eps), {}, first=True)


@_adapter("native_layer_norm", table=OF_SEVERAL)
def _of_layer_norm(input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float
                   ) -> Meaning:
    return Meaning(F.layer_norm, (input, normalized_shape, weight, bias, eps), {}, first=True)


@_adapter("native_group_norm", table=OF_SEVERAL)
def _of_group_norm(input: Any, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: int,
                   eps: float) -> Meaning:
    return Meaning(F.group_norm, (input, group, weight, bias, eps), {}, first=True)


@_adapter("max_pool2d_with_indices", table=OF_SEVERAL)
def _of_max_pool(self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0,
                 dilation: Any = 1, ceil_mode: bool = False) -> Meaning:
    return Meaning(F.max_pool2d, (self, kernel_size, stride or None, padding, dilation, ceil_mode),
                   {}, first=True)


@_adapter("adaptive_max_pool2d", table=OF_SEVERAL)
def _of_adaptive_max_pool(self: Any, output_size: Any) -> Meaning:
    return Meaning(F.adaptive_max_pool2d, (self, output_size), {}, first=True)


@_adapter("layer_norm")
def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
                eps: float = 1e-5, cudnn_enable: bool = True) -> Meaning:
    return _function(F.layer_norm, input, normalized_shape, weight, bias, eps)


@_adapter("group_norm")
def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None,
                eps: float = 1e-5, cudnn_enabled: bool = True) -> Meaning:
    return _function(F.group_norm, input, num_groups, weight, bias, eps)


@_adapter("instance_norm")
def _instance_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
                   use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool
                   ) -> Meaning:
    return _function(F.instance_norm, input, running_mean, running_var, weight, bias,
                     use_input_stats, momentum, eps)


def _resizing(mode: str, antialias: bool) -> Adapter:
    def adapter(input: Any = None, output_size: Any = None, align_corners: bool | None = None,
                scale_factors: Any = None, self: Any = None, **scales: Any) -> Meaning:
        sizes = [scales[key] for key in ("scales_d", "scales_h", "scales_w", "scales")
                 if scales.get(key) is not None]
        factors = scale_factors or sizes or None
        size = None if factors else output_size
        more = {"antialias": True} if antialias else {}
        return _function(F.interpolate, self if input is None else input, size, factors, mode,
                         align_corners, **more)
    return adapter


for _name, _mode in {
        "upsample_nearest1d": "nearest", "upsample_nearest2d": "nearest",
        "upsample_nearest3d": "nearest", "_upsample_nearest_exact1d": "nearest-exact",
        "_upsample_nearest_exact2d": "nearest-exact", "_upsample_nearest_exact3d": "nearest-exact",
        "upsample_linear1d": "linear", "upsample_bilinear2d": "bilinear",
        "upsample_bicubic2d": "bicubic", "upsample_trilinear3d": "trilinear",
        "_upsample_bilinear2d_aa": "bilinear", "_upsample_bicubic2d_aa": "bicubic"}.items():
    ADAPTERS[_name] = _resizing(_mode, _name.endswith("_aa"))


@_adapter("constant_pad_nd")
def _constant_pad(self: Any, pad: Any, value: float = 0) -> Meaning:
    return _function(F.pad, self, pad, "constant", value)


@_adapter("pad")
def _pad(self: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Meaning:
    return _function(F.pad, self, pad, mode, value)


@_adapter("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflection(self: Any, padding: Any) -> Meaning:
    return _function(F.pad, self, padding, "reflect")


@_adapter("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replication(self: Any, padding: Any) -> Meaning:
    return _function(F.pad, self, padding, "replicate")


@_adapter("slice")
def _slice(self: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Meaning:
    return _function(operator.getitem, self, _index(dim, _slice_of(start, end, step)))


@_adapter("index")
def _index_by(self: Any, indices: Any) -> Meaning:
    return _function(operator.getitem, self, tuple(slice(None) if i is None else i
                                                   for i in indices))


@_adapter("slice_scatter")
def _slice_scatter(self: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None,
                   step: int = 1) -> Meaning:
    return _function(set_item, self, _index(dim, _slice_of(start, end, step)), src)


@_adapter("select_scatter")
def _select_scatter(self: Any, src: Any, dim: int, index: int) -> Meaning:
    return _function(set_item, self, _index(dim, index), src)


@_adapter("copy")
def _copy(self: Any, src: Any) -> Meaning:
    return _function(out_of_place, self, "copy_", src)


def _slice_of(start: Any, end: Any, step: int) -> slice:
    return slice(start, None if isinstance(end, int) and end >= LARGEST else end, step)


def _index(dim: int, part: Any) -> tuple[Any, ...]:
    """Return the index that picks a part along one dimension, counted from either end."""
    if dim < 0:
        return (Ellipsis, part, *[slice(None)] * (-dim - 1))
    return (*[slice(None)] * dim, part)


def _softmax_by(target: Callable[..., Any]) -> Adapter:
    def adapter(self: Any, dim: int, half_to_float: bool = False, dtype: Any = None) -> Meaning:
        return _function(target, self, dim, **({} if dtype is None else {"dtype": dtype}))
    return adapter


ADAPTERS["softmax"] = ADAPTERS["_softmax"] = _softmax_by(torch.softmax)
ADAPTERS["log_softmax"] = ADAPTERS["_log_softmax"] = _softmax_by(torch.log_softmax)


@_adapter("addmm")
def _addmm(self: Any, mat1: Any, mat2: Any, beta: float = 1, alpha: float = 1) -> Meaning:
    weight = _transposed(mat2)
    if weight is None or (alpha, beta) != (1, 1):
        return _function(torch.addmm, self, mat1, mat2, beta=beta, alpha=alpha)
    return _function(F.linear, mat1, weight, self)


@_adapter("mm")
def _mm(self: Any, mat2: Any) -> Meaning:
    weight = _transposed(mat2)
    if weight is None:
        return _function(torch.mm, self, mat2)
    return _function(F.linear, self, weight)


def _transposed(node: Any) -> fx.Node | None:
    """Return the matrix of which this is the transpose."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source = node.args[0]
    how = [tuple(a) if isinstance(a, (list, tuple)) else a for a in node.args[1:]]
    turns = (node.target in (torch.t, "t") or (node.target in (torch.permute, "permute", "t")
             and how == [(1, 0)]) or (node.target in (torch.transpose, "transpose")
                                      and how in ([0, 1], [1, 0])))
    return source if turns and isinstance(source, fx.Node) and source.op == "get_attr" else None


@_adapter("hardtanh")
def _hardtanh(self: Any, min_val: float = -1, max_val: float = 1) -> Meaning:
    if (min_val, max_val) == (0, 6):
        return _function(F.relu6, self)
    return _function(F.hardtanh, self, min_val, max_val)


@_adapter("clamp")
def _clamp(self: Any, min: Any = None, max: Any = None) -> Meaning:
    if (min, max) == (0, 6):
        return _function(F.relu6, self)
    return _function(torch.clamp, self, min, max)


@_adapter("elu")
def _elu(self: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Meaning:
    if (scale, input_scale) != (1, 1):
        raise NoMeaning("an ELU with scales of its own")
    return _function(F.elu, self, alpha)


@_adapter("to", "_to_copy")
def _to(self: Any, dtype: Any = None, device: Any = None, other: Any = None, **how: Any) -> Meaning:
    if other is not None:
        return _function("type_as", self, other)
    if dtype is None:
        return _function("clone", self)
    return _function("to", self, dtype)


@_adapter("grid_sampler", "grid_sampler_2d")
def _grid_sampler(input: Any, grid: Any, interpolation_mode: int, padding_mode: int,
                  align_corners: bool) -> Meaning:
    return _function(F.grid_sample, input, grid, ("bilinear", "nearest", "bicubic")[
        interpolation_mode], ("zeros", "border", "reflection")[padding_mode], align_corners)


@_adapter("linalg_vector_norm")
def _vector_norm(self: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, *,
                 dtype: Any = None) -> Meaning:
    return _function(torch.linalg.vector_norm, self, ord, dim, keepdim)


def same_padding(weight: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return ``(left, right, top, bottom)`` of a convolution with ``padding="same"``."""
    sides: list[int] = []
    for kernel, step in zip(reversed(weight[2:]), reversed(dilation), strict=True):
        total = step * (kernel - 1)
        sides += [total // 2, total - total // 2]
    return sides
