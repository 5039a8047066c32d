"""Find state: what a forward keeps of one frame for the next, which no graph of a frame can hold.

Before: ``self.background = 0.9 * self.background + 0.1 * x; return x - self.background``.
After: `KeepsState`, which names ``background``.

A graph reads every attribute as it was when the model was traced, so such a model would be
answered as if each frame were its first. What a forward leaves and never reads (a map for whoever
looks at it, a counter) is no state, and neither is what it makes of shapes alone (a grid).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.passes.functionalize import is_shape_read, written_into

TABLES = ("_buffers", "_parameters")


class KeepsState(Exception):
    """Raised for a forward whose answer depends on the frames before."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the attributes."""
        super().__init__(f"it keeps {', '.join(sorted(set(names)))} from frame to frame")


class Attributes:
    """What the modules of a model hold, to find out what a forward does to it, and undo that."""

    def __init__(self, model: nn.Module) -> None:
        """Take note of attributes, of what is in lists and dicts, and of the tensors' numbers."""
        self._held = [(name, holder, copy.copy(holder)) for name, holder in _holders(model)]
        self._tensors = [(_join(name, key), value, value.detach().clone())
                         for name, holder, _ in self._held for key, value in _items(holder)
                         if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)]
        self._versions = [_version(tensor) for _, tensor, _ in self._tensors]

    def written(self) -> dict[int, str]:
        """Return the names of the tensors that were written into, by identity."""
        return {id(tensor): name for (name, tensor, _), version in zip(
            self._tensors, self._versions, strict=True) if _version(tensor) != version}

    def left(self) -> list[str]:
        """Return where proxies are that were computed from a frame's numbers."""
        return [name if isinstance(holder, list) else _join(name, key)
                for name, holder, _ in self._held for key, value in _items(holder)
                if any(map(_carries_numbers, _proxies(value)))]

    def restore(self, undo: Callable[[Any], Any]) -> None:
        """Put back what was written into, and what had the place of such new values."""
        for _, holder, before in self._held:
            known = dict(_items(before))
            for key, value in reversed(list(_items(holder))):
                if key in known:
                    holder[key] = known[key] if undo(value) else value
                elif undo(value):
                    del holder[key]
        written = self.written()
        with torch.no_grad():
            for _, tensor, before in self._tensors:
                if id(tensor) in written:
                    tensor.copy_(before)


def find_state(model: nn.Module, trace: Callable[[], fx.Graph]) -> fx.Graph:
    """Trace a model, leave it as it was, and return the graph.

    Raises:
        KeepsState: where the graph would not say what the model does from its second frame on.
    """
    attributes = Attributes(model)
    try:
        graph = trace()
        left, written = attributes.left(), attributes.written()
    finally:
        attributes.restore(_proxies)
    if kept := _read_though_written(model, graph, written):
        raise KeepsState(kept)
    if left and _reads_again(attributes, trace):
        raise KeepsState(left)
    return graph


def _read_though_written(model: nn.Module, graph: fx.Graph, written: dict[int, str]) -> list[str]:
    """Return which tensors of the model get a frame's numbers, or count frames and are read.

    FX computes at once with a buffer, so what was made of one cannot be followed further.
    """
    def tensor(node: fx.Node) -> int:
        value: Any = model
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return id(value)
    receivers = [written_into(model, node) for node in graph.nodes]
    into = [str(r.target) for r in receivers if r is not None and r.op == "get_attr"
            and not _is_made(r)]
    read = [tensor(n) for n in _behind(graph.output_node()) if n.op == "get_attr"]
    return into + [written[key] for key in read if key in written]


def _is_made(node: fx.Node) -> bool:
    """Whether a tensor was made by the forward itself, and only put into the model by FX."""
    return str(node.target).startswith("_tensor_constant")


def _reads_again(attributes: Attributes, trace: Callable[[], fx.Graph]) -> bool:
    """Whether a second forward reads what a first one left."""
    try:
        first = trace()
        attributes.restore(lambda value: not all(map(_carries_numbers, _proxies(value))))
        before = len(first.nodes)
        second = trace()
        foreign = any(n.graph is not second for node in second.nodes for n in node.all_input_nodes)
        return foreign or len(first.nodes) > before
    except Exception:
        return True  # the first one went well: it is what it left that the second failed on
    finally:
        attributes.restore(_proxies)


def _behind(node: fx.Node, stop: Callable[[fx.Node], bool] = lambda node: False
            ) -> Iterator[fx.Node]:
    """Yield a node, all that it is computed from, and so on; nothing behind what stops it."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node not in seen and not stop(node):
            seen.add(node)
            waiting += node.all_input_nodes
            yield node


def _carries_numbers(proxy: fx.Proxy) -> bool:
    """Whether a value is computed from the numbers of a frame, not only from its shape."""
    def makes_new(node: fx.Node) -> bool:
        name = getattr(node.target, "__name__", str(node.target))
        return is_shape_read(node) or name.startswith("new_") or name.endswith("_like")
    return any(n.op == "placeholder" for n in _behind(proxy.node, makes_new))


def _holders(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of each module, and each list or dict among them."""
    for path, module in model.named_modules():
        yield path, vars(module)
        for name, value in list(vars(module).items()):
            if type(value) in (list, dict):
                yield (path if name in TABLES else _join(path, name)), value


def _items(holder: Any) -> Iterable[tuple[Any, Any]]:
    """Return keys and values; containers of an object are holders of their own."""
    if isinstance(holder, list):
        return enumerate(holder)
    return [(key, value) for key, value in holder.items() if key not in TABLES]


def _proxies(value: Any) -> list[fx.Proxy]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Proxy)]


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
