"""Partition: each node is local, global or unknown, with the reason.

Before: nodes with shapes.
After: ``meta["rule"]``, ``meta["reason"]``, and for local nodes ``meta["footprints"]``.

By the operator's rule and by rank: a pointwise function of a vector behind a classifier has no
pixels, so it runs whole. So do views that are no `select`: they only move numbers. Comes after
`fuse`, so that what was fused is asked once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.footprint import Footprint, broadcast
from deltaconvert.operators import registry
from deltaconvert.operators.registry import Operator, Shapes
from deltaconvert.passes.find_selects import only_moves
from deltaconvert.passes.result import PassResult

WEIGHTS = frozenset({"weight", "bias", "mean", "var"})


def partition(graph_module: GraphModule, lanes: int) -> PassResult:
    """Annotate the graph; ``lanes`` is the batch size."""
    result = PassResult("partition")
    for node in graph_module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node.meta["constant"]:
            continue
        _decide(node, lanes)
        if node.meta["rule"] == "unknown":
            result.refused[node.name] = node.meta["reason"]
        else:
            result.changed.append(f"{node.name}: {node.meta['rule']}")
    for node in _between_whole(graph_module.graph):
        node.meta.update(rule="global", footprints=(), reason="it is between nodes that run whole")
    return result


def _decide(node: fx.Node, lanes: int) -> None:
    operator = registry.find(node.target) if node.op == "call_function" else None
    if operator is None and only_moves(node):
        node.meta.update(rule="global", reason="", footprints=())
        return
    if operator is None or not isinstance(node.meta["value"], Tensor):
        name = getattr(node.target, "__name__", str(node.target))
        reason = node.meta.get("reason") or f"{name} is not an operator that deltaconvert knows"
        node.meta.update(rule="unknown", reason=reason, footprints=())
        return
    shapes = shapes_of(node, operator)
    node.meta.update(shapes=shapes, footprints=(), reason="")
    if operator.rule == "global":
        node.meta.update(rule="global", reason=operator.not_local(shapes) or "",
                         advice=operator.advice)
        return
    reason = _edges_as_weights(node, operator) or _not_maps(shapes, lanes) or (
        operator.not_local(shapes))
    if reason:
        node.meta.update(rule="global", reason=reason, advice=operator.advice)
        return
    node.meta.update(rule="local", footprints=tuple(_footprints(operator, shapes)))


def _between_whole(graph: fx.Graph) -> set[fx.Node]:
    """Return what is moved or done pixel by pixel between nodes that run whole.

    As where the scores of an attention are scaled, biased and masked, maps of a channel a head, or
    where its queries are cut out of a product: all of it changes together. What is but moves of
    local values is not computed whole.
    """
    found: set[fx.Node] = set()
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        rule = node.meta.get("rule")
        operator = registry.find(node.target) if node.op == "call_function" else None
        read = edges(node) if rule else []
        moves = operator.moves_only if operator else only_moves(node)
        if rule == "global" and (not moves or any(e in computed for e in read)):
            computed.add(node)
        elif (rule == "local" and operator is not None and not node.meta["multiply_adds"]
                and (operator.pixelwise or operator.moves_only)
                and all(e in computed for e in read)):
            computed.add(node)
            found.add(node)
    for node in reversed(graph.nodes):
        if not all(u in found or u.meta.get("rule") == "global" for u in node.users):
            found.discard(node)
    return found


def shapes_of(node: fx.Node, operator: Operator) -> Shapes:
    """Collect what an operator may ask about one of its calls."""
    value = node.meta["value"]
    constants = {name: tuple(a.meta["value"].shape) for name, a in bound(node, operator).items()
                 if isinstance(a, fx.Node) and a.meta["constant"]
                 and isinstance(a.meta["value"], Tensor)}
    inputs = tuple(tuple(n.meta["value"].shape) if isinstance(n.meta["value"], Tensor) else ()
                   for n in edges(node))
    return Shapes(inputs, tuple(value.shape), constants, dict(node.kwargs))


def edges(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values change from frame to frame, in the order of the arguments."""
    return [n for n in node.all_input_nodes if not n.meta["constant"]]


def bound(node: fx.Node, operator: Operator) -> dict[str, Any]:
    """Return a call's positional arguments by the names of the parameters."""
    return dict(zip(inspect.signature(operator.function).parameters, node.args, strict=False))


def _edges_as_weights(node: fx.Node, operator: Operator) -> str:
    for name, argument in bound(node, operator).items():
        if name in WEIGHTS and isinstance(argument, fx.Node) and not argument.meta["constant"]:
            return f"its {name} depends on the frame"
    return ""


def _not_maps(shapes: Shapes, lanes: int) -> str:
    for shape in (*shapes.inputs, shapes.output):
        if len(shape) != 4 or shape[0] != lanes:
            return f"{list(shape)} is not a map of {lanes} lanes (N x C x H x W)"
    return ""


def _footprints(operator: Operator, shapes: Shapes) -> Sequence[Footprint]:
    if operator.footprints is not None:
        return operator.footprints(shapes)
    return [broadcast(shapes.size_in(i), shapes.size_out) for i in range(len(shapes.inputs))]
