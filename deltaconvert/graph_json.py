"""A normalised graph as JSON and back, naming nothing but pure tensor functions.

A record is a node: ``{"name": "relu_1", "op": "operator", "target": "relu", "args": [...],
"kwargs": {...}, "path": ..., "source": ..., "reason": ...}``. Its ``op`` is ``"input"``
(target: the argument's name), ``"weight"`` (target: a name in the state dict), ``"operator"``
(of the registry), ``"function"`` (of the table below), ``"method"`` (of a tensor) or
``"output"``.

FX writes Python source from a graph: names of nodes, weights and keywords go into it as
they are, arguments by their ``repr``. So reading takes plain names and a closed set of kinds
of arguments only, and looks functions up in a table: a file cannot say what is executed.
"""

from __future__ import annotations

import copy
import functools
import keyword
import math
import operator
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import (
    CheckpointError,
    DamagedError,
    TraceError,
    UnsafeError,
    UnsupportedError,
    VersionError,
)
from deltaconvert.operators import registry
from deltaconvert.passes.functionalize import (
    SHAPE_ATTRIBUTES,
    VIEW_METHODS,
    out_of_place,
    set_item,
    write_through,
)
from deltaconvert.passes.trace import trace
from deltaconvert.report import count

Record = dict[str, Any]
TOLD = ("path", "source", "reason", "advice")  # what a record says of a node beside what it calls

# --- what a file may name ---------------------------------------------------------------
# Functions of their arguments alone: nothing random, nothing that writes, reads files,
# imports, or takes a function. Of each list what this PyTorch has is taken.

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

HELPERS: tuple[Callable[..., Any], ...] = (getattr, set_item, out_of_place, write_through)

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
    "write_through": "|".join(sorted(VIEW_METHODS | {"getitem"})),
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
def _names() -> Mapping[Callable[..., Any], str]:
    names = {function: name for name, function in reversed(list(functions().items()))}
    # What `torch.meshgrid` calls when it is given a list, in which PyTorch looks for no proxies.
    return names | {torch._VF.meshgrid: "torch.meshgrid"}  # type: ignore[attr-defined]


def _refusal(op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
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


# --- arguments --------------------------------------------------------------------------

LARGEST_INT = 1 << 63
DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values()
          if isinstance(d, torch.dtype)}
MEMORY_FORMATS = {str(m).removeprefix("torch."): m for m in (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)}


class _Unwritable(Exception):
    """An argument that has no form in a file, and why."""


def _encode(value: Any, refer: Mapping[fx.Node, Any]) -> Any:
    """Return JSON for an argument; ``refer`` gives that of a node."""
    if isinstance(value, fx.Node):
        return refer[value]
    if value is None or isinstance(value, bool) or type(value) is str:
        return value
    if isinstance(value, int) and abs(value) < LARGEST_INT:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (tuple, list, dict, slice)):
        return _encode_container(value, refer)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": None}
    raise _Unwritable(f"a {type(value).__name__} among the arguments ({value!r:.60})")


def _encode_container(value: Any, refer: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, slice):
        return {"slice": [_encode(v, refer) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        if not all(_is_name(key) for key in value):
            raise _Unwritable(f"a dict among the arguments whose keys are no names ({value!r:.60})")
        return {"dict": {key: _encode(v, refer) for key, v in value.items()}}
    parts = [_encode(v, refer) for v in value]
    if isinstance(value, torch.Size):
        return {"size": parts}
    return parts if isinstance(value, list) else {"tuple": parts}


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """Return the argument that JSON stands for.

    Raises:
        CheckpointError: for anything that `_encode` does not write.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int) and abs(value) < LARGEST_INT:
        return value
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        (kind, content), = value.items()
        if kind in _KINDS:
            return _KINDS[kind](content, nodes)
    raise DamagedError(f"it has an argument of an unknown kind, {value!r:.60}.")


def _decode_node(content: Any, nodes: Mapping[str, fx.Node]) -> fx.Node:
    if content not in nodes:
        raise DamagedError(f"it reads the node {content!r:.60}, which does not come before it.")
    return nodes[content]


def _decode_dict(content: Any, nodes: Mapping[str, fx.Node]) -> dict[str, Any]:
    return {_name(key): _decode(v, nodes) for key, v in content.items()}


def _decode_slice(content: Any, nodes: Mapping[str, fx.Node]) -> slice:
    start, stop, step = (_decode(v, nodes) for v in content)
    return slice(start, stop, step)


def _decode_float(content: Any, nodes: Mapping[str, fx.Node]) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]


def _decode_device(content: Any, nodes: Mapping[str, fx.Node]) -> torch.device:
    """Take the CPU, or for any GPU the current one."""
    if content == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d{1,3})?", content):
        raise CheckpointError(f"it names the device {content!r:.60}.")
    if not torch.cuda.is_available():
        raise CheckpointError(f"the model itself asks for {content}, and there is no GPU here.")
    return torch.device("cuda", torch.cuda.current_device())


_KINDS: Mapping[str, Callable[[Any, Mapping[str, fx.Node]], Any]] = {
    "node": _decode_node,
    "tuple": lambda content, nodes: tuple(_decode(v, nodes) for v in content),
    "size": lambda content, nodes: torch.Size(_decode(v, nodes) for v in content),
    "dict": _decode_dict,
    "slice": _decode_slice,
    "float": _decode_float,
    "dtype": lambda content, nodes: DTYPES[content],
    "memory_format": lambda content, nodes: MEMORY_FORMATS[content],
    "device": _decode_device,
    "ellipsis": lambda content, nodes: Ellipsis,
}


def _is_name(text: Any, any_letters: bool = False) -> bool:
    """Whether this is an identifier, of ASCII as FX makes them or with any letters."""
    return isinstance(text, str) and len(text) < 400 and text.isidentifier() and (
        any_letters or text.isascii()) and not keyword.iskeyword(text)


def _name(text: Any) -> str:
    if not _is_name(text):
        raise DamagedError(f"{text!r:.80} is not a plain name.")
    name: str = text
    return name


# --- writing ----------------------------------------------------------------------------


def encode_graph(graph: fx.Graph, root: nn.Module) -> list[Record]:
    """Return the records of a normalised graph.

    Modules that the graph still calls (unknown ones, of ``torch.nn``) become the one
    function that they call, with their settings as its arguments.

    Args:
        graph: of a converted model, before any pass behind `normalize`.
        root: whose parameters, buffers and modules it names.

    Raises:
        UnsupportedError: listing all that cannot be written, with its path and why.
    """
    writer = _Writer(root, {node.name for node in graph.nodes})
    for node in graph.nodes:
        writer.write(node)
    if writer.problems:
        raise UnsupportedError(
            f"{count(len(writer.problems), 'part')} of this model cannot be written to a file, "
            "which names nothing but pure tensor functions:\n"
            + "\n".join(f"  {problem}" for problem in writer.problems)
            + "\nReplace them in the model, or convert it from its source each time.")
    return writer.records


class _Writer:
    """Records being made; problems are collected, so that all are told at once."""

    def __init__(self, root: nn.Module, taken: set[str]) -> None:
        self.root, self.taken = root, taken
        self.records: list[Record] = []
        self.problems: list[str] = []
        self.refer: dict[fx.Node, Any] = {}

    def write(self, node: fx.Node) -> None:
        """Write one node of the graph."""
        if node.op == "placeholder":
            self._add(node, {"name": node.name, "op": "input", "target": str(node.target)},
                      node.meta)
        elif node.op == "get_attr":
            self._weight(node, node.name, str(node.target), node.meta)
        elif node.op == "call_module":
            self._leaf(node)
        elif node.op == "output":
            self._output(node)
        else:
            self._call(node, node.name, node.meta)

    def _add(self, node: fx.Node, record: Record, meta: Mapping[str, Any]) -> None:
        told = {key: str(meta[key]) for key in TOLD if meta.get(key)}
        if "source" in told:
            told["source"] = without_folders(told["source"])
        self.records.append({**record, **told})
        self.refer[node] = {"node": record["name"]}

    def _weight(self, node: fx.Node, name: str, target: str, meta: Mapping[str, Any]) -> None:
        self._add(node, {"name": name, "op": "weight", "target": target},
                  {"path": meta.get("path"), "source": meta.get("source")})

    def _output(self, node: fx.Node) -> None:
        try:
            self.records.append({"op": "output", "args": [_encode(node.args[0], self.refer)]})
        except _Unwritable as refusal:
            self.problems.append(f"the output: {refusal}")

    def _call(self, node: fx.Node, name: str, meta: Mapping[str, Any]) -> None:
        op, target = _target(node)
        record = {"name": name, "op": op, "target": target}
        reason = _refusal(op, target, node.args, node.kwargs) if op else (
            f"{target} is not among the functions that a file may name")
        try:
            record["args"] = [_encode(a, self.refer) for a in node.args]  # type: ignore[assignment]
            record["kwargs"] = {  # type: ignore[assignment]
                key: _encode(a, self.refer) for key, a in node.kwargs.items()}
        except _Unwritable as refusal:
            reason = reason or f"{target} has {refusal}"
        if reason:
            place = meta.get("source") or "line unknown"
            self.problems.append(f"{meta.get('path') or name}: {reason} ({place})")
        self._add(node, record, meta)

    def _leaf(self, node: fx.Node) -> None:
        """Write the function that a module of ``torch.nn`` calls, in the module's place."""
        path = str(node.target)
        module = self.root.get_submodule(path)
        try:
            inner, call = _as_function(module)
            self._bind(node, inner)
        except _Unwritable as refusal:
            self.problems.append(f"{path} ({type(module).__name__}): {refusal}")
            self.refer[node] = {"node": node.name}
            return
        for part in inner.nodes:
            name = node.name if part is call else self._unused(f"{node.name}_{part.name}")
            if part.op == "get_attr":
                self._weight(part, name, f"{path}.{str(part.target).removeprefix(PREFIX)}",
                             node.meta)
            elif part.op.startswith("call"):
                self._call(part, name, node.meta)
        self.refer[node] = self.refer[call]

    def _bind(self, node: fx.Node, inner: fx.Graph) -> None:
        names = {str(n.target): n for n in inner.nodes if n.op == "placeholder"}
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if len(node.args) > len(names) or set(given) != set(names):
            raise _Unwritable("it is called with more than the tensors it computes with")
        for name, part in names.items():
            self.refer[part] = _encode(given[name], self.refer)

    def _unused(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def without_folders(source: str) -> str:
    """Shorten ``file:line: code`` to the file and its folder.

    A file is handed on; where its author keeps the model is nobody's business.
    """
    found = re.match(r"(.*?)(:\d+: .*)", source, re.DOTALL)
    return "/".join(PurePath(found[1]).parts[-2:]) + found[2] if found else source


def _target(node: fx.Node) -> tuple[str, str]:
    """Return how a file spells what a node calls; no ``op`` where it may not."""
    if node.op == "call_method":
        name = str(node.target)
        return ("method" if name in methods() else ""), name
    found = registry.find(node.target)
    if found is not None:
        return "operator", found.name
    try:
        known = _names().get(node.target)  # type: ignore[arg-type]
    except TypeError:  # unhashable: nobody's
        known = None
    if known is None:
        home = getattr(node.target, "__module__", None)
        name = getattr(node.target, "__name__", str(node.target))
        return "", f"{home}.{name}" if home else name
    return "function", known


# --- modules as functions ---------------------------------------------------------------

PREFIX = "norm."  # of the weights' names in a `_Batched`
RANKS = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}


class _Batched(nn.Module):
    """A norm without its look at the input's rank, which tracing cannot follow."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = copy.copy(norm)
        self.norm.__dict__["_check_input_dim"] = _accept
        self.rank = RANKS.get(type(norm))  # type: ignore[arg-type]

    def forward(self, x: Any) -> Any:
        if self.rank is None:
            return self.norm.forward(x)
        # Given an input without a batch, the module adds one; the function cannot know.
        torch._assert(x.dim() == self.rank, f"an instance norm takes {self.rank} dimensions")
        return self.norm._apply_instance_norm(x)  # type: ignore[operator]


def _accept(x: Any) -> None:
    """Check nothing."""


def _as_function(module: nn.Module) -> tuple[fx.Graph, fx.Node]:
    """Find out by tracing which function a module calls.

    Returns:
        The graph of its weights and the call, and the call.

    Raises:
        _Unwritable: where that is not one call: a file would hold several nodes, each with
            a threshold of its own, in the place of one.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise _Unwritable("it has forward hooks, which are code of the model's own")
    is_norm = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *RANKS)
    try:
        traced = trace(_Batched(module) if is_norm else module)
    except TraceError:
        raise _Unwritable("what it computes cannot be traced to one function") from None
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    calls = []
    for node in traced.graph.nodes:
        if node.op == "get_attr" and str(node.target).removeprefix(PREFIX) not in own:
            raise _Unwritable(f"it has a tensor {node.target} that is no parameter or buffer")
        if node.op.startswith("call") and node.target not in ("dim", operator.eq, torch._assert):
            calls.append(node)
    if len(calls) != 1 or traced.graph.output_node().args[0] != [calls[0]]:
        steps = ", ".join(getattr(n.target, "__name__", str(n.target)) for n in calls)
        raise _Unwritable(f"it is not one function but {len(calls)} ({steps or 'none'})")
    return traced.graph, calls[0]


# --- reading ----------------------------------------------------------------------------


def decode_graph(records: list[Record], weights: Iterable[str]) -> fx.Graph:
    """Build the graph that records describe; nothing of it is run.

    Args:
        records: as `encode_graph` gives them, or anything that was found in a file.
        weights: the names of the tensors that nodes may read.

    Raises:
        CheckpointError: naming the node and why it is refused. Records that have not even the
            form of records raise whatever Python raises.
    """
    graph, nodes, known = fx.Graph(), dict[str, fx.Node](), frozenset(weights)
    *body, last = records
    for record in body:
        name = record["name"]
        if name in nodes:
            raise DamagedError(f"there are two nodes {name!r:.80}.")
        try:
            node = _decode_record(graph, _name(name), record, nodes, known)
        except CheckpointError as error:
            raise type(error)(f"the node {name!r:.80} was refused: {error}") from None
        if node.name != name:
            raise DamagedError(f"{name!r} is a name that Python uses itself.")
        node.meta.update({key: str(record.get(key, "")) for key in ("path", "source")})
        node.meta.update({key: str(record[key]) for key in TOLD[2:] if key in record})
        nodes[name] = node
    if last["op"] != "output":
        raise DamagedError("its graph has no output.")
    results = _decode(last["args"][0], nodes)
    if not isinstance(results, list):
        raise DamagedError("its graph does not return a list.")
    graph.output(results)
    graph.lint()
    graph.python_code("self")  # raises where FX cannot write a call, which says what is wrong
    return graph


def _decode_record(graph: fx.Graph, name: str, record: Record, nodes: Mapping[str, fx.Node],
                   weights: frozenset[str]) -> fx.Node:
    op, target = record["op"], record["target"]
    if op == "input":
        inputs = [n.target for n in nodes.values() if n.op == "placeholder"]
        if not _is_name(target, any_letters=True) or target in ["self", *inputs]:
            raise DamagedError(f"an input cannot be called {target!r:.80}.")
        return graph.create_node("placeholder", target, name=name)
    if op == "weight":
        if target not in weights or any(keyword.iskeyword(part) for part in target.split(".")):
            raise DamagedError(f"there is no tensor {target!r:.80} in the file.")
        return graph.create_node("get_attr", target, name=name)
    found = _find(op, target)
    args = tuple(_decode(a, nodes) for a in record["args"])
    kwargs = {_name(key): _decode(a, nodes) for key, a in record["kwargs"].items()}
    reason = _refusal(op, target, args, kwargs)
    if reason:
        raise UnsafeError(f"{reason}.")
    fx_op = "call_method" if op == "method" else "call_function"
    return graph.create_node(fx_op, found, args, kwargs, name=name)


def _find(op: str, target: str) -> Callable[..., Any] | str:
    """Look up what a record calls, in tables alone."""
    if op == "operator":
        operator_found = registry.named(target)
        if operator_found is not None:
            return operator_found.function
        raise VersionError(f"this version of deltaconvert has no operator {target!r:.80}.")
    if op == "function" and target in functions():
        return functions()[target]
    if op == "method" and target in methods():
        return target
    raise UnsafeError(f"the {op!s:.20} {target!r:.80} is not among the pure tensor functions that "
                      "a file may name.")


# --- the structure of the outputs -------------------------------------------------------


def encode_spec(spec: pytree.TreeSpec) -> Any:
    """Return JSON for the structure of a model's outputs.

    Raises:
        UnsupportedError: for containers that are not Python's own.
    """
    return _encode_tree(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))


def _encode_tree(tree: Any) -> Any:
    if type(tree) is int:
        return tree  # a leaf, by its place
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = [_encode_tree(v) for v in tree]
        return {"named_tuple": [type(tree).__name__, list(tree._fields), parts]}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_encode_tree(v) for v in tree]}
    if type(tree) in (dict, OrderedDict):
        if not all(isinstance(key, (str, int)) for key in tree):
            raise UnsupportedError("the model returns a dict with keys that are neither strings "
                                   "nor numbers; a file cannot hold that.")
        kind = "dict" if type(tree) is dict else "ordered_dict"
        return {kind: [[key, _encode_tree(v)] for key, v in tree.items()]}
    raise UnsupportedError(
        f"the model returns a {type(tree).__module__}.{type(tree).__qualname__}, which needs the "
        "model's source; a file can hold tuples, lists, dicts and named tuples. Convert a "
        "module that returns one of these.")


def decode_spec(tree: Any, leaves: int) -> pytree.TreeSpec:
    """Build a structure of ``leaves`` outputs; named tuples are new classes of the same names.

    Raises:
        CheckpointError: where it does not hold these outputs, in their order.
    """
    order, spec = pytree.tree_flatten(_decode_tree(tree))
    if order != list(range(leaves)):
        raise DamagedError(f"the structure of its {leaves} outputs does not fit them.")
    return spec


def _decode_tree(tree: Any) -> Any:
    if type(tree) is int:
        return tree
    (kind, content), = tree.items()
    if kind == "named_tuple":
        name, fields, parts = content
        made = namedtuple(_name(name), [_name(f) for f in fields])  # type: ignore[misc]
        return made(*(_decode_tree(p) for p in parts))
    if kind in ("tuple", "list"):
        parts = [_decode_tree(p) for p in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind in ("dict", "ordered_dict"):
        pairs = [(key, _decode_tree(p)) for key, p in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    raise DamagedError(f"its outputs are in a container of an unknown kind, {kind!r:.60}.")
