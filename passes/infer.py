"""Infer: shapes, what is constant, and what a chain of views amounts to.

Before: ``n, c, h, w = x.shape; x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)``.
After: ``select(x, channels=(0, c // 2, 1, ...), rows=None, cols=None)``.

Each node gets ``meta["value"]``: the tensor's shape and dtype as a fake tensor, or the
constant itself where it does not depend on the frame's numbers (``meta["constant"]``):
weights, folded weights, and whatever is computed from shapes, which is put into the
arguments as numbers. Weights are real tensors, so derived weights are computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from deltaconvert.errors import FrameError, FrameShapeError, FrameTypeError, UnsupportedError
from deltaconvert.nodes import Layout
from deltaconvert.operators import registry
from deltaconvert.operators.cat import cat
from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.pad import pad
from deltaconvert.operators.pad_zero import pad_zero
from deltaconvert.passes.find_selects import find_selects
from deltaconvert.passes.find_writes import settle_writes, versions
from deltaconvert.passes.result import PassResult
from deltaconvert.passes.trace import without_logging

CONVERSIONS = frozenset({"to", "float", "double", "half", "bfloat16", "type", "type_as",
                         "expand_as", "expand", "cpu", "cuda"})
QUANTISED = frozenset({torch.quint8, torch.qint8, torch.qint32})
# Calls that ask one of their arguments, by its place, for its shape or type alone.
ASKED_FOR_SHAPE = {"expand_as": 1, "view_as": 1, "reshape_as": 1, "type_as": 1, "zeros_like": 0,
                   "ones_like": 0, "full_like": 0, "new_zeros": 0, "new_ones": 0, "new_full": 0}


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *rest: Any,
                     **settings: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


# PyTorch's counter has the kernels of attention for GPUs alone.
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def infer(graph_module: GraphModule, frames: Sequence[Tensor]) -> PassResult:
    """Annotate and simplify the graph in place for frames like these.

    Raises:
        FrameError: where a node fails on such frames, with its line and reason.
        UnsupportedError: for a quantised model.
    """
    result = PassResult("infer")
    try:
        with without_logging():
            _annotate(graph_module, _fake_frames(frames))
    except NeedsNumbers:
        _annotate(graph_module, [torch.zeros_like(f) for f in frames])
        result.refused["graph"] = "an operator needs real numbers: shapes come from a run on zeros"
    _inline_numbers(graph_module.graph)
    _drop_conversions(graph_module.graph, result)
    _drop_empty_parts(graph_module.graph, result)
    find_selects(graph_module.graph, result)
    graph_module.graph.eliminate_dead_code()
    _note_layouts(graph_module.graph)
    graph_module.recompile()
    return result


class NeedsNumbers(Exception):
    """A fake tensor was not enough."""


def _fake_frames(frames: Sequence[Tensor]) -> list[Tensor]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return [mode.from_tensor(f) for f in frames]


@torch.no_grad()
def _annotate(graph_module: GraphModule, frames: list[Tensor]) -> None:
    waiting = list(frames)
    mode = frames[0].fake_mode if isinstance(frames[0], FakeTensor) else None
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            node.meta.update(value=waiting.pop(0), constant=False)
        elif node.op == "get_attr":
            node.meta.update(value=attribute(graph_module, str(node.target)), constant=True)
        elif node.op != "output":
            annotate(graph_module, node, mode)


@torch.no_grad()
def annotate(graph_module: GraphModule, node: fx.Node, mode: FakeTensorMode | None) -> None:
    """Give a call its value, whether that is constant, and the multiply-adds it took.

    Args:
        graph_module: of the node, for its weights.
        node: whose inputs have theirs.
        mode: that of the fake frames; nothing where the frames are real.
    """
    asked = _asked_for_shape(node)
    constant = all(n.meta["constant"] for n in node.all_input_nodes if n is not asked)
    written = versions(node)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        value = _run(graph_module, node, None if constant else mode, asked)
    value = settle_writes(node, written, value)
    if isinstance(value, Tensor) and value.dtype in QUANTISED:
        raise UnsupportedError(
            f"{node.meta.get('path') or node.name} gives integers with a scale "
            f"({value.dtype}), which have no pixels to compare. Convert the model as it was before "
            "it was quantised; dtype='bfloat16' makes that faster.")
    if constant and asked is not None and not asked.meta["constant"]:  # all there is to know of it
        shape = tuple(asked.meta["value"].shape)
        node.args = tuple(shape if a is asked else a for a in node.args)
    constant = constant or not has_tensor(value)
    node.meta.update(value=value, constant=constant,
                     multiply_adds=counter.get_total_flops() // 2)


def _asked_for_shape(node: fx.Node) -> fx.Node | None:
    """Return the input of which a call reads no number, if there is one."""
    place = _place_of_asked(node)
    asked = None if place is None else node.args[place]
    others = [a for i, a in enumerate(node.args) if i != place]
    return asked if isinstance(asked, fx.Node) and asked not in others else None


def _place_of_asked(node: fx.Node) -> int | None:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    known = node.op == "call_method" or node.target is getattr(torch, str(name), None)
    place = ASKED_FOR_SHAPE.get(str(name)) if known else None
    return None if place is None or place >= len(node.args) else place


def with_values(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> tuple[Any, dict[str, Any]]:
    """Return a call's arguments with values for nodes, in lists and dicts that may be written to.

    FX's own refuse that, and functions that it does not look into may well do it.
    """
    def plain(argument: Any) -> Any:
        if isinstance(argument, (tuple, list)) and not hasattr(argument, "_fields"):
            parts = [plain(part) for part in argument]
            return tuple(parts) if isinstance(argument, tuple) else parts
        if isinstance(argument, dict):
            return {key: plain(part) for key, part in argument.items()}
        return fx.map_arg(argument, value_of)
    args, kwargs = plain(tuple(node.args)), plain(dict(node.kwargs))
    return args, kwargs


@torch.no_grad()
def computed(graph_module: GraphModule, node: fx.Node) -> Any:
    """Compute a constant from the model's weights, in their precision."""
    if node.op == "get_attr":
        return attribute(graph_module, str(node.target))
    args, kwargs = with_values(node, lambda n: computed(graph_module, n))
    place = _place_of_asked(node)
    if place is not None and isinstance(args[place], tuple):  # `annotate` left a shape there
        value = node.meta["value"]
        like = torch.zeros((), dtype=value.dtype, device=value.device).expand(args[place])
        args = (*args[:place], like, *args[place + 1:])
    return _call(graph_module, node, args, kwargs)


def attribute(graph_module: torch.nn.Module, path: str) -> Any:
    """Return a parameter or buffer by its dotted path."""
    value: Any = graph_module
    for name in path.split("."):
        value = getattr(value, name)
    return value.detach() if isinstance(value, Tensor) else value


def _run(graph_module: GraphModule, node: fx.Node, mode: FakeTensorMode | None,
         asked: fx.Node | None) -> Any:
    """Make a call; without a mode the numbers are real, but for those it is not asked for."""
    def value_of(n: fx.Node) -> Any:
        value = n.meta["value"]
        return _like(value) if mode is None and n is asked and isinstance(
            value, FakeTensor) else value
    args, kwargs = with_values(node, value_of)
    try:
        if mode is None:
            return _call(graph_module, node, args, kwargs)
        with mode:
            return _call(graph_module, node, args, kwargs)
    except Exception as error:
        if mode is not None:
            raise NeedsNumbers from error
        raise _refused(node, args, error) from error


def _like(fake: FakeTensor) -> Tensor:
    """Return a real tensor of one number that stands for all of a fake one's."""
    return torch.zeros((), dtype=fake.dtype, device=fake.fake_device).expand(fake.shape)


def _refused(node: fx.Node, args: tuple[Any, ...], error: Exception) -> FrameError:
    """Say which call fails on such frames, and what of them to look at."""
    shapes = [tuple(n.meta["value"].shape) for n in node.all_input_nodes
              if not n.meta["constant"] and isinstance(n.meta["value"], Tensor)]
    source = f" ({node.meta['source']})" if node.meta.get("source") else ""
    where = f"module {node.meta['path']}" if node.meta.get("path") else node.name
    text = (f"{where} fails on inputs of the shapes {shapes}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}{source}. ")
    weights = [n.meta["value"] for n in node.all_input_nodes
               if n.meta["constant"] and isinstance(n.meta["value"], Tensor)]
    types = {w.dtype for w in weights}
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    if len(types) == 1 and dtypes - types:
        return FrameTypeError(f"{text}The weights are {types.pop()}: give the frames that dtype, "
                              "normalised as for the dense model.")
    if node.target is conv2d and node.kwargs["groups"] == 1 and shapes[0][1:2] == (3,) and (
            weights[0].shape[1:2] == (1,)):
        return FrameShapeError(f"{text}Frames for it are gray (on the command line "
                               "--channel-order gray).")
    return FrameShapeError(f"{text}Check the size and the channels of the frames against what the "
                           "model takes.")


def _call(graph_module: GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in a value of nested containers."""
    if isinstance(value, (tuple, list)):
        return any(has_tensor(v) for v in value)
    if isinstance(value, dict):
        return any(has_tensor(v) for v in value.values())
    return isinstance(value, Tensor)


def _inline_numbers(graph: fx.Graph) -> None:
    """Put constants that are not tensors into the arguments of their readers."""
    for node in list(graph.nodes):
        if node.op in ("placeholder", "output") or not node.meta.get("constant"):
            continue
        value = node.meta["value"]
        if has_tensor(value):
            continue
        value = tuple(value) if isinstance(value, torch.Size) else value
        for user in list(node.users):
            _put(user, node, value)
        graph.erase_node(node)


def _put(user: fx.Node, node: fx.Node, value: Any) -> None:
    user.args, user.kwargs = fx.map_arg((user.args, dict(user.kwargs)),
                                        lambda n: value if n is node else n)


def _drop_empty_parts(graph: fx.Graph, result: PassResult) -> None:
    """Join no tensor without numbers: the place of a map that an encoder does not have."""
    for node in graph.find_nodes(op="call_function", target=cat):
        given = node.args[0] if isinstance(node.args[0], (tuple, list)) else ()
        parts = [part for part in given if part.meta["value"].numel()]
        if not 0 < len(parts) < len(given) or any(
                part.meta["value"].dtype != node.meta["value"].dtype for part in parts):
            continue
        result.changed.append(f"{node.name}: of {len(parts)} parts, the others are empty")
        node.args = (parts,)
        if len(parts) == 1:
            node.replace_all_uses_with(parts[0])
            graph.erase_node(node)


def _note_layouts(graph: fx.Graph) -> None:
    """Note how tensors lie that functions are given which deltaconvert does not know.

    Values are kept with their channels last, and some in a concatenation. An operator gives the
    same numbers whatever the layout; other code may view its tensors as they lie in the model.
    """
    for node in graph.nodes:
        if node.op.startswith("call_") and registry.find(node.target) is None:
            layouts: list[Layout | None] = []
            with_values(node, lambda n, layouts=layouts: layouts.append(  # type: ignore[misc]
                _layout(n.meta["value"])))
            node.meta["layouts"] = layouts


def _layout(value: Any) -> Layout | None:
    """Return shape and strides of a tensor, or of a copy that has no gaps."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return tuple(value.shape), torch.empty_like(value).stride()


def _drop_conversions(graph: fx.Graph, result: PassResult) -> None:
    """Remove conversions to what a tensor is already, and padding by nothing."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        converts = (node.op == "call_method" and node.target in CONVERSIONS) or (
            node.target in (pad, pad_zero) and not any(node.kwargs["padding"]))  # type: ignore[arg-type]
        if converts and isinstance(source, fx.Node) and _alike(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            result.changed.append(f"{node.name}: converts to what it is already")


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["value"], other.meta["value"]
    return (isinstance(a, Tensor) and isinstance(b, Tensor)
            and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device))


