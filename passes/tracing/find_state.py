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

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from deltaconvert.passes.functionalize import writes_into_copy, written_into
from deltaconvert.passes.tracing.attributes import Attributes, proxies, storage
from deltaconvert.passes.tracing.compare_graphs import alike, attribute_before, constants_of, same
from deltaconvert.passes.tracing.find_numbers import with_numbers
from deltaconvert.passes.tracing.shape_caches import caches_by_shape, same_with_caches
from deltaconvert.passes.tracing.watch_counters import Watch


class KeepsState(Exception):
    """Raised for a forward whose answer depends on the frames before."""

    def __init__(self, names: Iterable[str]) -> None:
        """Name the attributes; none is for what is kept outside of the model."""
        self.names = sorted(set(names))
        kept = ", ".join(self.names) or "something outside of its attributes"
        super().__init__(f"it keeps {kept} from frame to frame")


def find_state(model: nn.Module, trace: Callable[[], fx.Graph]) -> fx.Graph:
    """Trace a model, leave it as it was, and return the graph.

    Raises:
        KeepsState: where the graph would not say what the model does from its second frame on.
    """
    attributes = Attributes(model)
    try:
        graph, constants = _with_constants(model, attributes, trace)
        if kept := _receivers(model, graph, attributes):
            raise KeepsState(kept)
        if not caches_by_shape(model, graph, attributes) or not _same_with_caches(
                model, graph, attributes, trace):
            _trace_again(model, graph, constants, attributes, trace)
        changed = attributes.changed()
    finally:
        attributes.restore(proxies)
    # Not so where a constant is a part of what was written into, and now is as it was before.
    if not same(constants, constants_of(model, attributes, graph)):
        raise KeepsState(changed)
    return graph


def _with_constants(model: nn.Module, attributes: Attributes, trace: Callable[[], fx.Graph]
                    ) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace, and copy the constants as they are then."""
    graph = trace()
    return graph, {name: value.clone() if isinstance(value, Tensor) and not isinstance(
        value, nn.Parameter) else value
                   for name, value in constants_of(model, attributes, graph).items()}


def _trace_again(model: nn.Module, graph: fx.Graph, constants: dict[str, Any],
                 attributes: Attributes, trace: Callable[[], fx.Graph]) -> None:
    """Trace once more, with what the first forward left; see `find_state`."""
    changed, counts = attributes.changed(), _counts(attributes)
    of_numbers = with_numbers(model, graph, changed)
    attributes.put_back(lambda value: any(p.node not in of_numbers for p in proxies(value)))
    size, held = len(graph.nodes), Attributes(model)
    try:
        second, others = _with_constants(model, held, trace)
        foreign = any(n.graph is not second for node in second.nodes for n in node.all_input_nodes)
    except Exception as error:  # the first one went well: it is what it left that this failed on
        raise KeepsState(changed) from error
    if foreign or len(graph.nodes) > size or not alike(graph, constants, second, others) or (
            _receivers(model, second, held)) or _calls_written(second, attributes):
        raise KeepsState(changed)
    moving = [name for name, count in _counts(attributes).items() if counts.get(name) != count]
    if moving and _looks(attributes, moving, trace):
        raise KeepsState(moving)


def _same_with_caches(model: nn.Module, graph: fx.Graph, attributes: Attributes,
                      trace: Callable[[], fx.Graph]) -> bool:
    """Trace once more, with what the first forward left, as numbers; see `same_with_caches`."""
    try:
        return same_with_caches(model, graph, attributes, trace)
    except Exception:  # the first one went well: it is what it left that this failed on
        return False


def _receivers(model: nn.Module, graph: fx.Graph, attributes: Attributes) -> list[str]:
    """Return which tensors of the model a graph writes into, itself or through a view.

    What may be a view of them, only calling it tells: they are marked for that.
    """
    storages = attributes.storages()
    for node in graph.find_nodes(op="get_attr"):
        if place := storages.get(storage(attribute_before(model, attributes, str(node.target)))):
            node.meta["held"] = place
    def value(path: str) -> Any:
        return attribute_before(model, attributes, path)
    tensors = [value(str(root.target)) for node in graph.nodes
               if (root := written_into(model, node)) is not None and root.op == "get_attr"
               and not writes_into_copy(model, node, value)]
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
