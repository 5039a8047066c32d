"""What a file may name: functions of their arguments alone.

Nothing random, nothing that writes, reads files, imports, or takes a function. Of each list what
this PyTorch has is taken.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from deltaconvert.operators.conv2d import before_same, behind_same
from deltaconvert.passes.functionalize import SHAPE_ATTRIBUTES, out_of_place, set_item
from deltaconvert.passes.views import VIEW_NAMES, write_through


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())

BOTH = _words("""
    abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv all amax amin angle any arccos
    arcsin arctan arctan2 argmax argmin argsort asin asinh atan atan2 atanh baddbmm bitwise_and
    bitwise_not bitwise_or bitwise_xor bmm broadcast_to ceil chunk clamp clamp_max clamp_min clip
    clone copysign cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad detach diag
    diag_embed diagonal diff div divide dot eq erf erfc exp exp2 expm1 fix flatten flip fliplr
    flipud float_power floor floor_divide fmax fmin fmod frac gather ge greater greater_equal gt
    heaviside hypot index_add index_copy index_fill index_select inner isfinite isinf isnan
    kthvalue le lerp less less_equal log log10 log1p log2 log_softmax logaddexp logical_and
    logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_scatter masked_select
    matmul max maximum mean median min minimum mm moveaxis movedim mul multiply mv nan_to_num
    nanmean nansum narrow ne neg negative norm not_equal numel outer permute positive pow prelu
    prod quantile rad2deg ravel reciprocal relu remainder repeat_interleave reshape roll rot90
    round rsqrt scatter scatter_add scatter_reduce select sigmoid sign signbit sin sinc sinh
    softmax sort split split_with_sizes sqrt square squeeze std sub subtract sum swapaxes swapdims
    t take take_along_dim tan tanh tensor_split tile topk trace transpose tril triu true_divide
    trunc unbind unflatten unsqueeze var where xlogy""")

ONLY_TORCH = _words("""
    _assert adaptive_avg_pool1d adaptive_max_pool1d aminmax arange avg_pool1d batch_norm bilinear
    bucketize cat cdist celu channel_shuffle column_stack concat concatenate conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dstack einsum eye full
    full_like group_norm hardshrink hstack instance_norm layer_norm linspace max_pool1d max_pool2d
    max_pool3d meshgrid ones ones_like pixel_shuffle pixel_unshuffle rms_norm rsub selu stack
    std_mean tensordot threshold var_mean vstack zeros zeros_like""")

ONLY_METHODS = _words("""
    __and__ __invert__ __or__ __radd__ __rmul__ __rsub__ __rtruediv__ __xor__ bfloat16 bool byte
    char contiguous cpu cuda dim double expand expand_as float half int is_floating_point long
    ndimension nelement new_full new_ones new_tensor new_zeros repeat reshape_as short size stride
    to type type_as unfold view view_as""")

ONLY_FUNCTIONAL = _words("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices
    adaptive_max_pool3d affine_grid avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu
    channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    cosine_similarity elu fold gelu glu grid_sample group_norm hardshrink hardsigmoid hardswish
    hardtanh instance_norm interpolate layer_norm leaky_relu linear local_response_norm
    log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool1d_with_indices
    max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d mish
    normalize one_hot pad pairwise_distance pixel_shuffle pixel_unshuffle prelu relu relu6
    rms_norm selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink
    threshold unfold upsample upsample_bilinear upsample_nearest""")

LINALG = _words("cross matmul matrix_norm norm vecdot vector_norm")

OPERATOR = _words("""
    add and_ eq floordiv ge getitem gt invert le lshift lt matmul mod mul ne neg or_ pos pow
    rshift sub truediv xor""")

MATH = _words("ceil exp floor log log2 pow prod sqrt trunc")

HELPERS: tuple[Callable[..., Any], ...] = (
    getattr, set_item, out_of_place, write_through, before_same, behind_same)

# The named parts of a tensor, and of what `max` and `sort` return.
ATTRIBUTES = SHAPE_ATTRIBUTES | {"T", "mT", "values", "indices"}

WRITES = frozenset({"copy_", "fill_", "fill_diagonal_", "zero_"})  # by `out_of_place`

ROUNDING = "floor|trunc"
WORD = r"[a-z][a-z0-9_-]{0,40}"
# Which strings a function may be given, wherever among its arguments.
WORDS = {
    "_assert": r"(?s).*",
    "div": ROUNDING,
    "divide": ROUNDING,
    "einsum": r"[A-Za-z., >-]+",
    "gelu": "none|tanh",
    "getattr": "|".join(sorted(ATTRIBUTES)),
    "grid_sample": "bilinear|nearest|bicubic|zeros|border|reflection",
    "interpolate": "nearest|nearest-exact|linear|bilinear|bicubic|trilinear|area",
    "matrix_norm": "fro|nuc",
    "meshgrid": "ij|xy",
    "norm": "fro|nuc",
    "out_of_place": "|".join(sorted(WRITES)),
    "pad": "constant|reflect|replicate|circular",
    "quantile": "linear|lower|higher|midpoint|nearest",
    "scatter_reduce": "sum|prod|mean|amax|amin",
    "to": r"cpu|cuda(:\d{1,3})?",
    "upsample": "nearest|linear|bilinear|bicubic|trilinear",
    "write_through": "|".join(sorted(VIEW_NAMES)),
}


@functools.cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """Return every function that a file may name, by the name it has there."""
    homes: list[tuple[str, Any, Iterable[str]]] = [
        ("torch", torch, BOTH | ONLY_TORCH), ("torch.nn.functional", F, ONLY_FUNCTIONAL),
        ("torch.linalg", torch.linalg, LINALG), ("operator", operator, OPERATOR),
        ("math", math, MATH)]
    table = {f"{home}.{name}": getattr(module, name) for home, module, names in homes
             for name in sorted(names) if hasattr(module, name)}
    return table | {helper.__name__: helper for helper in HELPERS}


@functools.cache
def methods() -> frozenset[str]:
    """Return every method of a tensor that a file may name."""
    return frozenset(name for name in BOTH | ONLY_METHODS if hasattr(Tensor, name))


@functools.cache
def spellings() -> Mapping[Callable[..., Any], str]:
    """Return the names of these functions, by the functions."""
    names = {function: name for name, function in reversed(list(functions().items()))}
    # What `torch.meshgrid` calls when it is given a list, in which PyTorch looks for no proxies.
    return names | {torch._VF.meshgrid: "torch.meshgrid"}  # type: ignore[attr-defined]


def refusal(op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Say why a call must not be in a file although what it calls may be; "" where it may."""
    if kwargs.get("out") is not None or kwargs.get("inplace"):
        return f"{target} writes into its argument"
    if op == "method" and not (args and isinstance(args[0], fx.Node)):
        return f"the method {target} is called on something that is not a node"
    if op == "function" and not _is_well_formed(target, args, kwargs):
        return f"{target} takes other arguments"
    allowed = WORDS.get(target.rpartition(".")[2], WORD if op == "operator" else None)
    for text in _strings((args, dict(kwargs))):
        if allowed is None or not re.fullmatch(allowed, text):
            return f"{target} takes no string like {text[:60]!r}"
    return ""


def _is_well_formed(target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the helpers that look something up by its name have that name spelled out."""
    if target == "getattr":
        return not kwargs and len(args) == 2 and isinstance(args[0], fx.Node) and isinstance(
            args[1], str)
    if target == "out_of_place":
        return len(args) > 1 and isinstance(args[1], str)
    if target == "write_through":
        return not kwargs and len(args) == 3 and isinstance(args[2], (tuple, list)) and all(
            isinstance(view, (tuple, list)) and len(view) == 3 and isinstance(view[0], str)
            for view in args[2])
    return True


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, slice):
        yield from _strings([value.start, value.stop, value.step])
