"""Find state: what a forward keeps of one frame for the next, which no graph of a frame can hold.

Before: ``self.background = 0.9 * self.background + 0.1 * x; return x - self.background``.
After: `KeepsState`, which names ``background``.

A graph reads every attribute as it was when the model was traced, so such a model would be
answered as if each frame were its first. So it is traced twice, one forward behind the other: a
second graph that differs from the first, in a call or a constant, goes by what the first forward
left. What is left and never read (a map for whoever looks at it, a counter) is no state, and
neither is what is made of shapes alone (a grid).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from deltaconvert.passes.functionalize import is_shape_read, written_into
from deltaconvert.passes.tracing.attributes import Attributes, proxies, storage
from deltaconvert.passes.tracing.watch_counters import Watch

PLAIN = (bool, int, float, complex, str, type(None), slice, torch.dtype, torch.device,
         torch.memory_format)
METHODS = {"truediv": "div", "floordiv": "__floordiv__", "mod": "remainder", "and_": "__and__",
           "or_": "__or__", "xor": "__xor__"}
CONVERSIONS = frozenset({"to", "type_as", "type", "float", "double", "half", "bfloat16"})


class KeepsState(Exception):
    """Raised for a forward whose answer depends on the frames before."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the attributes; none is for what is kept outside of the model."""
        kept = ", ".join(sorted(set(names))) or "something outside of its attributes"
        super().__init__(f"it keeps {kept} from frame to frame")


def find_state(model: nn.Module, trace: Callable[[], fx.Graph]) -> fx.Graph:
    """Trace a model, leave it as it was, and return the graph.

    Raises:
        KeepsState: where the graph would not say what the model does from its second frame on.
    """
    attributes = Attributes(model)
    try:
        graph, constants = _trace_alone(model, attributes, trace)
        if kept := _receivers(model, graph, attributes):
            raise KeepsState(kept)
        if _caches_by_shape(model, graph, attributes):
            _trace_with_caches(model, graph, attributes, trace)
        else:
            _trace_again(model, graph, constants, attributes, trace)
        changed = attributes.changed()
    finally:
        attributes.restore(proxies)
    # Not so where a constant is a part of what was written into, and now is as it was before.
    if not _same(constants, _constants(model, attributes, graph)):
        raise KeepsState(changed)
    return graph


def _trace_alone(model: nn.Module, attributes: Attributes, trace: Callable[[], fx.Graph]
                 ) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace with the same random numbers each time; copy the constants as they are then."""
    with torch.random.fork_rng(devices=[]):
        graph = trace()
    return graph, {name: value.clone() if isinstance(value, Tensor) and not isinstance(
        value, nn.Parameter) else value
                   for name, value in _constants(model, attributes, graph).items()}


def _trace_again(model: nn.Module, graph: fx.Graph, constants: dict[str, Any],
                 attributes: Attributes, trace: Callable[[], fx.Graph]) -> None:
    """Trace once more, with what the first forward left; see `find_state`."""
    changed, counts = attributes.changed(), _counts(attributes)
    of_numbers = with_numbers(model, graph, changed)
    attributes.put_back(lambda value: any(p.node not in of_numbers for p in proxies(value)))
    size, held = len(graph.nodes), Attributes(model)
    try:
        second, others = _trace_alone(model, held, trace)
        foreign = any(n.graph is not second for node in second.nodes for n in node.all_input_nodes)
    except Exception as error:  # the first one went well: it is what it left that this failed on
        raise KeepsState(changed) from error
    if foreign or len(graph.nodes) > size or not _alike(graph, constants, second, others) or (
            _receivers(model, second, held)) or _calls_written(second, attributes):
        raise KeepsState(changed)
    moving = [name for name, count in _counts(attributes).items() if counts.get(name) != count]
    if moving and _looks(attributes, moving, trace):
        raise KeepsState(moving)


def _caches_by_shape(model: nn.Module, graph: fx.Graph, attributes: Attributes) -> bool:
    """Whether all that a forward left is a shape, and what is made of shapes alone."""
    left = [value for _, _, _, value in attributes.changes()]
    of_numbers = with_numbers(model, graph, [])
    return any(isinstance(value, torch.Size) for value in left) and not attributes.written() and (
        all(isinstance(value, torch.Size) or (
            proxies(value) and all("fake" in p.node.meta and p.node not in of_numbers
                                   for p in proxies(value))) for value in left))


def _trace_with_caches(model: nn.Module, graph: fx.Graph, attributes: Attributes,
                       trace: Callable[[], fx.Graph]) -> None:
    """Trace once more, with what the first forward left, as numbers: ``if shape != self.shape``.

    What is done with a frame is then to be the same, with the same numbers beside it, be they
    made anew or found.
    """
    changed, changes = attributes.changed(), attributes.changes()
    first = _Numbers(model, graph, attributes)
    try:
        for _, holder, key, value in changes:
            holder[key] = pytree.tree_map_only(
                fx.Proxy, lambda p: pytree.tree_map_only(Tensor, Tensor.clone, first.of(p.node)),
                value)  # copies, which it may write into
        calls = first.calls()
        with torch.random.fork_rng(devices=[]):
            second = trace()
        if not _same(calls, _Numbers(model, second, attributes).calls()):
            raise KeepsState(changed)
    except KeepsState:
        raise
    except Exception as error:  # the first one went well: it is what it left that this failed on
        raise KeepsState(changed) from error
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
                made = _attribute(self._model, self._attributes, str(node.target))
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


def _receivers(model: nn.Module, graph: fx.Graph, attributes: Attributes) -> list[str]:
    """Return which tensors of the model a graph writes into, itself or through a view."""
    storages = attributes.storages()
    found = [written_into(model, node) for node in graph.nodes]
    tensors = [_attribute(model, attributes, str(n.target)) for n in found
               if n is not None and n.op == "get_attr"]
    return [storages[storage(t)] for t in tensors if storage(t) in storages]


def _calls_written(graph: fx.Graph, attributes: Attributes) -> bool:
    """Whether a module that is called as a whole has a tensor that the forward wrote into."""
    called = tuple(f"{n.target}." for n in graph.nodes if n.op == "call_module")
    return any(name.startswith(called) for name in attributes.written().values())


def _looks(attributes: Attributes, moving: list[str], trace: Callable[[], fx.Graph]) -> bool:
    """Whether a forward goes by the numbers of these names."""
    found = [entry for entry in attributes.moving() if entry[0] in moving]
    watch = Watch([value for _, _, _, value in found if isinstance(value, Tensor)])
    for _, holder, key, value in found:
        if not isinstance(value, Tensor):
            holder[key] = watch.number(value)
    try:
        with watch:
            trace()
    finally:
        for _, holder, key, value in found:
            holder[key] = value
    return watch.looked


def _counts(attributes: Attributes) -> dict[str, Any]:
    """Return what stands for each number and tensor that changes from forward to forward."""
    return {name: (id(value), 0 if value.is_inference() else value._version)
            if isinstance(value, Tensor) else value
            for name, _, _, value in attributes.moving() if "_tensor_constant" not in name}


# --- graphs -----------------------------------------------------------------------------


def _attribute(model: nn.Module, before: Attributes, path: str) -> Any:
    """Return what a graph reads: what was there before, where the forward left a proxy."""
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return before.tensor(path) if isinstance(value, fx.Proxy) else value


def _constants(model: nn.Module, before: Attributes, graph: fx.Graph) -> dict[str, Any]:
    """Return the attributes that a graph reads, by the names of their nodes."""
    return {node.name: _attribute(model, before, str(node.target)) for node in graph.nodes
            if node.op == "get_attr"}


def _alike(graph: fx.Graph, constants: dict[str, Any], other: fx.Graph, others: dict[str, Any]
           ) -> bool:
    """Whether two graphs make the same calls with the same constants."""
    if len(graph.nodes) != len(other.nodes):
        return False
    place = {node: i for g in (graph, other) for i, node in enumerate(g.nodes)}
    for one, two in zip(graph.nodes, other.nodes, strict=True):
        if one.op != two.op or (one.op == "get_attr" and not _same(
                constants[one.name], others[two.name])):
            return False
        if one.op.startswith("call_") and one.target != two.target:
            return False
        if not _same(fx.map_arg((one.args, one.kwargs), place.__getitem__),
                     fx.map_arg((two.args, two.kwargs), place.__getitem__)):
            return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments mean the same; what cannot be compared is taken to."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or ((one.shape, one.dtype) == (other.shape, other.dtype) and (
            one.is_meta or one.is_quantized or one.layout is not torch.strided or bool(
                torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return one == other or (one != one and other != other)
    return isinstance(one, PLAIN) == isinstance(other, PLAIN)


def with_numbers(model: nn.Module, graph: fx.Graph, changed: list[str]) -> set[fx.Node]:
    """Return the nodes that hold numbers of a frame, or of what changes from frame to frame.

    Not those of what follows from shapes alone, nor an attribute that was only converted.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_source = node.op == "placeholder" or (node.op == "get_attr" and node.target in changed)
        if is_source or not found.isdisjoint(_read(node)):
            found.add(node)
            if receiver := written_into(model, node):
                found.add(receiver)
    return found


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of which a call may read numbers."""
    inputs = node.all_input_nodes
    name = getattr(node.target, "__name__", str(node.target))
    if is_shape_read(node) or (name in CONVERSIONS and all(n.op == "get_attr" for n in inputs[:1])):
        return []
    if name.startswith("new_") or name.endswith("_like"):  # `torch.full_like(x, x.mean())`
        inputs = []
        fx.map_arg((node.args[1:], node.kwargs), inputs.append)
    return inputs
