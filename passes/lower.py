"""Lower: each canonical operator becomes its delta node, with doors at the boundaries.

Before: ``y = conv2d(x, w, b, None, stride=(1, 1), ...)``, ``return [y]``.
After: ``x = sparsify_x(state, x)``, ``y = self.y(state, x)``, ``return [densify_y(state, y)]``.

What is a node, with which rule, was settled by `partition`; here the configuration's
thresholds and norms are attached, and constants move from the graph into the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule

from deltaconvert.config import Config, Norm
from deltaconvert.nodes import (
    DeltaNode,
    DensifyNode,
    Description,
    EdgeSpec,
    Slot,
    SparsifyNode,
    copy_value,
    filler,
    slots,
)
from deltaconvert.operators import registry
from deltaconvert.passes.annotate import with_values
from deltaconvert.passes.find_selects import moves_a_tensor
from deltaconvert.passes.find_writes import on_copies
from deltaconvert.passes.join_whole import inputs_of, is_unknown
from deltaconvert.passes.partition import edges
from deltaconvert.passes.store_as import floating_dtype


def lower(graph_module: GraphModule, lanes: int, config: Config) -> GraphModule:
    """Return a new graph module, called as ``(state, *frames)``, of delta nodes only."""
    lowering = _Lowering(graph_module, lanes, config)
    for node in graph_module.graph.nodes:
        lowering.take(node)
    return GraphModule(lowering.root, lowering.graph, class_name="Delta")


class _Lowering:
    """The new graph while it is being built."""

    def __init__(self, source: GraphModule, lanes: int, config: Config) -> None:
        self.source, self.lanes, self.config = source, lanes, config
        self.root, self.graph = nn.Module(), fx.Graph()
        self.state = self.graph.placeholder("state")
        self.lowered: dict[fx.Node, fx.Node] = {}
        self.paying = _paying(source.graph)

    def take(self, node: fx.Node) -> None:
        """Lower one node."""
        if node.op == "placeholder":
            frame = self.graph.placeholder(f"{node.name}_frame")
            if node.users:
                self._add(node, SparsifyNode(self._door_in(node)), frame)
        elif node.op == "output":
            (results,) = node.args
            given = node.meta.get("given", [None] * len(results))  # type: ignore[arg-type]
            self.graph.output(list(map(self._door_out, results, given)))  # type: ignore[arg-type]
        elif node.op != "get_attr" and not node.meta["constant"] and "elsewhere" not in node.meta:
            describe = self._describe_joined if _is_joined(node) else self._describe
            self._add(node, DeltaNode(describe(node)), *(self.lowered[e] for e in _edges(node)))

    def _add(self, node: fx.Node, made: DeltaNode, *inputs: fx.Node) -> None:
        # The call ``x.half()`` makes a node ``half``, which every module has already.
        taken = hasattr(GraphModule, node.name) or node.name in ("meta", "training")
        place = f"{node.name}_node" if taken else node.name
        self.root.add_module(place, made)
        self.lowered[node] = self.graph.create_node(
            "call_module", place, (self.state, *inputs), name=node.name)

    def _spec(self, node: fx.Node) -> EdgeSpec:
        value = node.meta["value"]
        if not isinstance(value, Tensor):
            return EdgeSpec(node.name, None, None, self.lanes)
        return EdgeSpec(node.name, tuple(value.shape), value.dtype, self.lanes)

    def _door_in(self, node: fx.Node) -> Description:
        spec = self._spec(node)
        return Description(
            node.name, str(node.target), "", "sparsify", "", sparsify, None, (Slot(0),),
            {"dims": node.meta["turned"]} if "turned" in node.meta else {}, (), spec,
            threshold=self.config.input_threshold, norm=self.config.norm)

    def _door_out(self, result: Any, given: Any) -> Any:
        """Return a copy of a result, as the model gives it where it is kept in another dtype."""
        if not isinstance(result, fx.Node):
            return result
        if result.meta["constant"]:
            value = result.meta["value"] if given is None else given
            if not isinstance(value, Tensor):
                return value
            self.root.register_buffer(result.name, value, persistent=False)
            constant = self.graph.get_attr(result.name)
            return self.graph.call_function(copy_value, (constant,))
        name = f"densify_{result.name}"
        spec = self._spec(result)
        if not hasattr(self.root, name):
            self.root.add_module(name, DensifyNode(Description(
                name, name, "", "densify", "", densify, None, (), {}, (spec,), spec),
                floating_dtype(given)))
        return self.graph.call_module(name, (self.state, self.lowered[result]))

    def _describe(self, node: fx.Node) -> Description:
        operator = registry.find(node.target) if node.op == "call_function" else None
        args, params = _template(node, edges(node))
        config = self.config if node in self.paying else self.config.replace(threshold=0.0)
        own = config.for_node(node.name, node.meta.get("path", ""))
        spec, rule = self._spec(node), node.meta["rule"]
        shapes = node.meta.get("shapes")
        # Moving numbers without computing adds no noise that a threshold could hold back,
        # and a label (a number without a difference) must never be held back.
        exact = bool(operator and operator.moves_only) or moves_a_tensor(node) or not (
            _is_floating(node))
        return Description(
            node.name, node.meta.get("path", ""), node.meta.get("source", ""), rule,
            node.meta["reason"], self._function(node), operator, args, params,
            tuple(self._spec(e) for e in edges(node)), spec,
            footprints=node.meta["footprints"],
            multiply_adds=(operator.multiply_adds(shapes) if operator and shapes and rule == "local"
                           else node.meta["multiply_adds"] // self.lanes),
            threshold=0.0 if exact else float(own.threshold or 0.0), norm=own.norm or "max",
            shapes=shapes, advice=node.meta.get("advice", ""))

    def _describe_joined(self, node: fx.Node) -> Description:
        """Describe the nodes that run as one, the last of which is given."""
        members: list[fx.Node] = node.meta["joined"]
        inputs = _edges(node)
        parts = [self._describe(member) for member in members]
        function = Joined([
            (part.function, *_template(member, [*inputs, *members]))
            for part, member in zip(parts, members, strict=True)])
        threshold, norm = self._held_back(node, parts)
        why = max(parts, key=lambda p: (bool(p.reason), p.multiply_adds))
        return replace(
            parts[-1], rule="unknown" if any(map(is_unknown, members)) else "global",
            reason=why.reason, advice=why.advice, function=function, operator=None,
            args=tuple(Slot(i) for i in range(len(inputs))), params={},
            inputs=tuple(map(self._spec, inputs)), shapes=None, constants={},
            multiply_adds=sum(p.multiply_adds for p in parts),
            threshold=threshold, norm=norm, unknown=tuple(
                part for part, member in zip(parts, members, strict=True) if is_unknown(member)))

    def _held_back(self, node: fx.Node, parts: list[Description]) -> tuple[float, Norm]:
        """Return threshold and norm of nodes that run as one.

        What is said of the last, if anything, or else those of the largest threshold: no value but
        the last one's is stored.
        """
        if not _is_floating(node):
            return 0.0, parts[-1].norm
        named = self.config.of_node(node.name, node.meta.get("path", ""))
        if named.threshold is not None:
            return named.threshold, parts[-1].norm
        largest = max(parts, key=lambda part: part.threshold)
        return largest.threshold, named.norm or largest.norm

    def _function(self, node: fx.Node) -> Any:
        function = self._as_written(node)
        if not node.meta.get("writes"):
            return function
        return on_copies(function, node.meta.get("returns"))

    def _as_written(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self.source.get_submodule(str(node.target))
        if node.op == "call_method":
            return _Method(str(node.target))
        return node.target


def _paying(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose threshold buys something: local multiply-adds come behind them.

    Holding back what only a head, a pooling or the door out reads costs accuracy and
    saves nothing: there the default threshold is 0.
    """
    paying: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for reader in node.users:
            operator = registry.find(reader.target) if reader.meta.get("rule") == "local" else None
            if reader in paying or (operator and operator.multiply_adds(reader.meta["shapes"])):
                paying.add(node)
    return paying


def _template(node: fx.Node, changing: Sequence[fx.Node]) -> tuple[Any, dict[str, Any]]:
    """Return a call's arguments with slots for nodes that change, which count these."""
    layouts = iter(node.meta.get("layouts", ()) if node.meta["rule"] == "unknown" else ())
    place = {n: i for i, n in enumerate(changing)}

    def value_of(n: fx.Node) -> Any:
        layout = next(layouts, None)
        return Slot(place[n], layout) if n in place else n.meta["value"]
    return with_values(node, value_of)


def _is_joined(node: fx.Node) -> bool:
    return len(node.meta.get("joined", ())) > 1


def _edges(node: fx.Node) -> list[fx.Node]:
    return inputs_of(node.meta["joined"]) if _is_joined(node) else edges(node)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta["value"]
    return isinstance(value, Tensor) and value.is_floating_point()


class Joined:
    """Calls one after the other, as one function of what they read together.

    Args:
        calls: function, arguments and keyword arguments of each; a `Slot` counts the inputs and
            then the results of the calls.
    """

    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        """Find out who reads each result last."""
        self.calls = calls
        self.run = [(function, filler(args), filler(params)) for function, args, params in calls]
        first, last_one = (getattr(function, "__name__", type(function).__name__)  # or a module
                           for function, *_ in (calls[0], calls[-1]))
        self.__name__ = f"{first}_to_{last_one}"
        last = {slot.index: n for n, (_, *rest) in enumerate(calls) for slot in slots(rest)}
        self.done = [[i for i, n in last.items() if n == call] for call in range(len(calls))]

    def __call__(self, *inputs: Any) -> Any:
        """Call them; a result is dropped behind its last reader."""
        values = list(inputs)
        for (function, args, params), done in zip(self.run, self.done, strict=True):
            values.append(function(*args(values), **params(values)))
            for i in done:
                values[i] = None
        return values[-1]


class _Method:
    """A tensor's method as a function, printable."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, receiver: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(receiver, self.__name__)(*args, **kwargs)


def sparsify(frame: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Say what the door in compares with: the frame itself, or with its dimensions moved."""
    return frame if dims is None else frame.permute(dims)


def densify(value: Tensor) -> Tensor:
    """Say what the door out computes: a copy of the value."""
    return torch.clone(value)
