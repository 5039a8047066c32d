"""Shape caches: ``if x.shape != self.shape: self.shape, self.grid = x.shape, grid(x.shape)``.

Part of `find_state`. A second graph of such a forward differs from the first, which is no state:
the grid is a constant where it was found, and calls where it was made. So the two are compared by
their numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.passes.functionalize import written_into
from deltaconvert.passes.tracing.attributes import Attributes
from deltaconvert.passes.tracing.compare_graphs import PLAIN, attribute_before, same
from deltaconvert.passes.tracing.find_numbers import with_numbers

METHODS = {"truediv": "div", "floordiv": "__floordiv__", "mod": "remainder", "and_": "__and__",
           "or_": "__or__", "xor": "__xor__", "lshift": "__lshift__", "rshift": "__rshift__",
           "getitem": "__getitem__"}


def caches_by_shape(model: nn.Module, graph: fx.Graph, attributes: Attributes) -> bool:
    """Whether all that a forward left is plain (a shape, ``[[h, w], ...]``) or made of shapes."""
    left = [leaf for _, _, _, value in attributes.changes()
            for leaf in pytree.tree_leaves(value, lambda v: isinstance(v, torch.Size))]
    of_numbers = with_numbers(model, graph, [])
    return any(isinstance(leaf, (torch.Size, fx.Proxy)) for leaf in left) and (
        not attributes.written() and all(
            "fake" in leaf.node.meta and leaf.node not in of_numbers if isinstance(leaf, fx.Proxy)
            else isinstance(leaf, (torch.Size, *PLAIN)) for leaf in left))


def same_with_caches(model: nn.Module, graph: fx.Graph, attributes: Attributes,
                     trace: Callable[[], fx.Graph]) -> bool:
    """Trace once more, with what the first forward left, as numbers.

    Returns:
        whether what is done with a frame is then the same, with the same numbers beside it, be
        they made anew or found, and it leaves what it found: so all later forwards are the same.
    """
    changes, first = attributes.changes(), _Numbers(model, graph, attributes)
    found, after = [first.numbers(value) for _, _, _, value in changes], Attributes(model)
    try:
        for (_, holder, key, _), value in zip(changes, found, strict=True):
            holder[key] = pytree.tree_map_only(Tensor, Tensor.clone, value)  # it may be written to
        calls = first.calls()
        second = _Numbers(model, trace(), attributes)
        left = attributes.changes()
        return len(left) == len(changes) and not attributes.written() and same(
            [calls, found], [second.calls(), [second.numbers(value) for _, _, _, value in left]])
    finally:
        after.restore(lambda value: True)


class _Numbers:
    """A graph's calls with the numbers of a frame, and the numbers beside them."""

    def __init__(self, model: nn.Module, graph: fx.Graph, attributes: Attributes) -> None:
        self._model, self._graph, self._attributes = model, graph, attributes
        self._of_frames = with_numbers(model, graph, [])
        self._known: dict[fx.Node, Any] = {}

    def numbers(self, value: Any) -> Any:
        """Return a value with what its proxies stand for."""
        return pytree.tree_map_only(fx.Proxy, lambda p: self.of(p.node), value)

    def calls(self) -> list[Any]:
        """Return what is done with a frame: calls, and arguments that are places or numbers."""
        dropped: set[fx.Node] = set()  # only looked at for their shapes: ``ones_like(x[:, :1])``
        for node in reversed(self._graph.nodes):
            if node.users and self._of_frames.isdisjoint(node.users.keys() - dropped) and (
                    written_into(self._model, node) is None):
                dropped.add(node)
        places = {node: f"call {place}" for place, node in enumerate(
            n for n in self._graph.nodes if n in self._of_frames and n not in dropped)}
        return [(_call(node), fx.map_arg(
            (node.args, node.kwargs), lambda n: places[n] if n in places else self.of(n)))
            for node in places]

    def of(self, node: fx.Node) -> Any:
        """Return what a node makes; of a frame, and what follows from it, only what it is like."""
        if node in self._of_frames:
            return pytree.tree_map_only(
                Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=t.device),
                node.meta["fake"])
        if node not in self._known:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.of)
            if node.op == "get_attr":
                made = attribute_before(self._model, self._attributes, str(node.target))
            elif node.op == "call_method":
                made = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif node.op == "call_module":
                made = self._model.get_submodule(str(node.target))(*args, **kwargs)
            else:
                made = node.target(*args, **kwargs)  # type: ignore[operator]
            self._known[node] = made
        return self._known[node]


def _call(node: fx.Node) -> str:
    """Name a call, an operator as the method that it is where a tensor stands before it."""
    name = str(getattr(node.target, "__name__", node.target))
    return METHODS.get(name, name) if node.target is getattr(operator, name, None) else name
