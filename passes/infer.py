"""Infer: shapes, what is constant, and what a chain of views amounts to.

Before: ``n, c, h, w = x.shape; x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)``.
After: ``select(x, channels=(0, c // 2, 1, ...), rows=None, cols=None)``.

Each node gets ``meta["value"]``: the tensor's shape and dtype as a fake tensor, or the
constant itself where it does not depend on the frame's numbers (``meta["constant"]``):
weights, folded weights, and whatever is computed from shapes, which is put into the
arguments as numbers. Weights are real tensors, so derived weights are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from deltaconvert.errors import UnsupportedError
from deltaconvert.nodes import Layout
from deltaconvert.operators import registry
from deltaconvert.operators.cat import cat
from deltaconvert.operators.pad import pad
from deltaconvert.operators.pad_zero import pad_zero
from deltaconvert.operators.reshape import reshape
from deltaconvert.passes.annotate import (
    NeedsNumbers,
    annotate,
    attribute,
    has_tensor,
    with_values,
    without_logging,
)
from deltaconvert.passes.find_selects import find_selects
from deltaconvert.passes.result import PassResult
from deltaconvert.passes.views import is_repeated

CONVERSIONS = frozenset({"to", "float", "double", "half", "bfloat16", "type", "type_as",
                         "expand_as", "expand", "cpu", "cuda"})


def infer(graph_module: GraphModule, frames: Sequence[Tensor]) -> PassResult:
    """Annotate and simplify the graph in place for frames like these.

    Raises:
        FrameError: where a node fails on such frames, with its line and reason.
        UnsupportedError: for a quantised model, and where a buffer is written into.
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
    _name_shapes(graph_module.graph)
    find_selects(graph_module.graph, result)
    graph_module.graph.eliminate_dead_code()
    _note_layouts(graph_module.graph)
    graph_module.recompile()
    return result


def _fake_frames(frames: Sequence[Tensor]) -> list[Tensor]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return [mode.from_tensor(f) for f in frames]


@torch.no_grad()
def _annotate(graph_module: GraphModule, frames: list[Tensor]) -> None:
    waiting = list(frames)
    for node in list(graph_module.graph.nodes):
        if node.op == "placeholder":
            node.meta.update(value=waiting.pop(0), constant=False)
        elif node.op == "get_attr":
            node.meta.update(value=attribute(graph_module, str(node.target)), constant=True)
        elif node.op != "output":
            annotate(graph_module, node)
            if is_repeated(node):
                _settle(node)


def _settle(node: fx.Node) -> None:
    """Drop a call that brings up to date what turned out to share no memory with what is written.

    Raises:
        UnsupportedError: it does, and is a buffer or the like, which the next frame would find so.
    """
    source = node.args[0]
    if isinstance(source, fx.Node) and node.meta["value"] is source.meta["value"]:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
    elif held := node.meta.get("held"):
        where = f" ({node.meta['source']})" if node.meta.get("source") else ""
        raise UnsupportedError(
            f"it keeps {held} from frame to frame: a view of that is written into{where}. Convert "
            "the parts without state with modules=, or give it as an input and return it.")


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


def _name_shapes(graph: fx.Graph) -> None:
    """Write ``x.reshape_as(y)`` as the `reshape` that it is: of y only the shape is asked."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target in ("reshape_as", "view_as") and (
                not node.meta["constant"]):
            node.op, node.target = "call_function", reshape
            node.args, node.kwargs = node.args[:1], {"shape": tuple(node.meta["value"].shape)}


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
    by_layout = any(map(is_repeated, graph.nodes))  # it tells what is a view
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        converts = (node.op == "call_method" and node.target in CONVERSIONS) or (
            node.target in (pad, pad_zero) and not any(node.kwargs["padding"]))
        if converts and isinstance(source, fx.Node) and _alike(node, source, by_layout):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            result.changed.append(f"{node.name}: converts to what it is already")


def _alike(one: fx.Node, other: fx.Node, by_layout: bool) -> bool:
    a, b = one.meta["value"], other.meta["value"]
    return (isinstance(a, Tensor) and isinstance(b, Tensor)
            and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
            and not (by_layout and a.stride() != b.stride()))
