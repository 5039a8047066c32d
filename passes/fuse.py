"""Fuse: convolution, add and activation become one node where nobody reads in between.

Before: ``c = conv2d(x, w, b)``, ``s = add(c, identity)``, ``y = relu(s)``.
After: ``y = conv2d(x, w, b, identity, activation=("relu",))``.

Any two of the three, and an activation behind a norm or an add alone. A value with a
second reader, or that is an output, stays: its reader would miss it. Comes after `infer`,
because only shapes tell a residual from a broadcast number or gate.
"""

from __future__ import annotations

from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators import registry
from deltaconvert.operators.add import add
from deltaconvert.operators.epilogue import Activation
from deltaconvert.operators.leaky_relu import leaky_relu
from deltaconvert.operators.prelu import prelu
from deltaconvert.passes.result import PassResult


def fuse(graph_module: GraphModule, unfused: frozenset[str] = frozenset()) -> PassResult:
    """Rewrite the graph in place.

    Args:
        graph_module: whose shapes are known.
        unfused: activations that the backend computes by themselves only.
    """
    graph, result = graph_module.graph, PassResult("fuse")
    done: set[fx.Node] = set()  # the later nodes that stand for what was fused
    for node in list(graph.nodes):
        operator = registry.find(node.target)
        if operator is None or node in done:
            continue
        head = node
        if "residual" in operator.fuses:
            head = _take_residual(graph, head, result)
        if "activation" in operator.fuses:
            head = _take_activation(graph, head, unfused, result)
        done.add(head)
    graph_module.recompile()
    return result


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _take_residual(graph: fx.Graph, head: fx.Node, result: PassResult) -> fx.Node:
    """Pull the add behind a convolution into it; returns the node that stands for both."""
    reader = _only_reader(head)
    if reader is None or reader.target is not add:
        return head
    reason = _refuse_residual(head, reader)
    if reason:
        result.refused[head.name] = reason
        return head
    residual = reader.args[1] if reader.args[0] is head else reader.args[0]
    reader.target, reader.args, reader.kwargs = (
        head.target, (*head.args[:3], residual), dict(head.kwargs))
    result.changed.append(f"{head.name}: takes {reader.name}")
    _take_over(graph, reader, head)
    return reader


def _refuse_residual(head: fx.Node, reader: fx.Node) -> str | None:
    others = [a for a in reader.args if a is not head]
    if reader.kwargs.get("alpha", 1) != 1 or reader.kwargs.get("activation"):
        return "the add behind it is scaled"
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].meta["constant"]:
        return "what is added behind it is not another map"
    if head.meta["constant"] or others[0] in head.all_input_nodes:
        # Footprints go by edge: one edge cannot be read through a window and at its own place.
        return "what is added behind it is its own input, or all that changes"
    value, mine = others[0].meta["value"], head.meta["value"]
    if not isinstance(value, Tensor) or value.shape != mine.shape or value.dtype != mine.dtype:
        return "what is added behind it is broadcast"
    return None


def _take_activation(graph: fx.Graph, head: fx.Node, unfused: frozenset[str],
                     result: PassResult) -> fx.Node:
    """Pull the activation behind a node into it; returns the node that stands for both."""
    reader = _only_reader(head)
    fused = _as_activation(reader) if reader else None
    if reader is None or fused is None or fused[0] in unfused:
        return head
    reader.target, reader.args = head.target, head.args
    reader.kwargs = {**head.kwargs, "activation": fused}
    result.changed.append(f"{head.name}: takes {reader.name}")
    _take_over(graph, reader, head)
    return reader


def _as_activation(node: fx.Node) -> Activation | None:
    """Return a call as an activation of constants, if it is one."""
    found = registry.find(node.target)
    if found is None or not found.is_activation:
        return None
    if node.target is not prelu:
        return (found.name, *node.kwargs.values())
    slope = node.args[1]
    if not isinstance(slope, fx.Node) or not slope.meta["constant"]:
        return None
    value = slope.meta["value"]
    return (leaky_relu.__name__, float(value)) if value.numel() == 1 else (found.name, slope)


def _take_over(graph: fx.Graph, node: fx.Node, head: fx.Node) -> None:
    """Let the later node stand for the earlier one, under the earlier one's name."""
    graph.erase_node(head)
    node.name = head.name
    node.meta.update(path=head.meta.get("path", ""), source=head.meta.get("source", ""))
