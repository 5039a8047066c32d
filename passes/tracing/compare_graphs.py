"""Compare graphs: whether two forwards of a model make the same calls with the same constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.passes.tracing.attributes import Attributes

PLAIN = (bool, int, float, complex, str, type(None), slice, torch.dtype, torch.device,
         torch.memory_format)


def attribute_before(model: nn.Module, before: Attributes, path: str) -> Any:
    """Return what a graph reads: what was there before, where the forward left a proxy."""
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return before.tensor(path) if isinstance(value, fx.Proxy) else value


def constants_of(model: nn.Module, before: Attributes, graph: fx.Graph) -> dict[str, Any]:
    """Return the attributes that a graph reads, by the names of their nodes."""
    return {node.name: attribute_before(model, before, str(node.target)) for node in graph.nodes
            if node.op == "get_attr"}


def alike(graph: fx.Graph, constants: dict[str, Any], other: fx.Graph, others: dict[str, Any]
          ) -> bool:
    """Whether two graphs make the same calls with the same constants."""
    if len(graph.nodes) != len(other.nodes):
        return False
    place = {node: i for g in (graph, other) for i, node in enumerate(g.nodes)}
    for one, two in zip(graph.nodes, other.nodes, strict=True):
        if one.op != two.op or (one.op == "get_attr" and not same(
                constants[one.name], others[two.name])):
            return False
        if one.op.startswith("call_") and one.target != two.target:
            return False
        if not same(fx.map_arg((one.args, one.kwargs), place.__getitem__),
                     fx.map_arg((two.args, two.kwargs), place.__getitem__)):
            return False
    return True


def same(one: Any, other: Any) -> bool:
    """Whether two arguments mean the same; what cannot be compared is taken to."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or ((one.shape, one.dtype) == (other.shape, other.dtype) and (
            one.is_meta or one.is_quantized or one.layout is not torch.strided or bool(
                torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return one == other or (one != one and other != other)
    return isinstance(one, PLAIN) == isinstance(other, PLAIN)
