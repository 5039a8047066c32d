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

from deltaconvert.passes.tracing.attributes import Attributes, proxies
from deltaconvert.passes.tracing.compare_graphs import attribute_before, same
from deltaconvert.passes.tracing.find_numbers import with_numbers

METHODS = {"truediv": "div", "floordiv": "__floordiv__", "mod": "remainder", "and_": "__and__",
           "or_": "__or__", "xor": "__xor__"}


def caches_by_shape(model: nn.Module, graph: fx.Graph, attributes: Attributes) -> bool:
    """Whether all that a forward left is a shape, and what is made of shapes alone."""
    left = [value for _, _, _, value in attributes.changes()]
    of_numbers = with_numbers(model, graph, [])
    return any(isinstance(value, torch.Size) for value in left) and not attributes.written() and (
        all(isinstance(value, torch.Size) or (
            proxies(value) and all("fake" in p.node.meta and p.node not in of_numbers
                                   for p in proxies(value))) for value in left))


def same_with_caches(model: nn.Module, graph: fx.Graph, attributes: Attributes,
                     trace: Callable[[], fx.Graph]) -> bool:
    """Trace once more, with what the first forward left, as numbers.

    Returns:
        whether what is done with a frame is then the same, with the same numbers beside it, be
        they made anew or found.
    """
    changes, first = attributes.changes(), _Numbers(model, graph, attributes)
    try:
        for _, holder, key, value in changes:
            holder[key] = pytree.tree_map_only(
                fx.Proxy, lambda p: pytree.tree_map_only(Tensor, Tensor.clone, first.of(p.node)),
                value)  # copies, which it may write into
        calls = first.calls()
        with torch.random.fork_rng(devices=[]):
            second = trace()
        return same(calls, _Numbers(model, second, attributes).calls())
    finally:
        for _, holder, key, value in changes:
            holder[key] = value


class _Numbers:
    """A graph's calls with the numbers of a frame, and the numbers beside them."""

    def __init__(self, model: nn.Module, graph: fx.Graph, attributes: Attributes) -> None:
        self._model, self._graph, self._attributes = model, graph, attributes
        self._of_frames = with_numbers(model, graph, [])
        self._known: dict[fx.Node, Any] = {}

    def calls(self) -> list[Any]:
        """Return what is done with a frame: calls, and arguments that are places or numbers."""
        places = {node: f"call {place}" for place, node in enumerate(
            n for n in self._graph.nodes if n in self._of_frames)}
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
