"""Channels first: what is computed on ``N x H x W x C`` is computed on ``N x C x H x W``.

Before: ``permute(linear(layer_norm(permute(x, (0, 2, 3, 1)), ...), w, b), (0, 3, 1, 2))``.
After: ``conv2d(layer_norm2d(x, ...), as_filter(w), b, ...)``.

In memory maps are channels last anyway; this is about what their dimensions mean, by which
`partition` tells pixels from channels. An operator says in ``channels_first`` what a call of it
is called on the other layout. A map is known to have its channels last where a permutation
put them there, or where it enters a norm or a matrix product over its last dimension. What
comes out is permuted back for readers that are not rewritten; where there are none, that goes.

A frame that comes so is seen channels first by its door, which compares pixel by pixel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators import registry
from deltaconvert.operators.layer_norm import layer_norm, rms_norm
from deltaconvert.operators.linear import linear
from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST, permute
from deltaconvert.operators.registry import Call, Refusal, call
from deltaconvert.passes.annotate import write
from deltaconvert.passes.partition import WEIGHTS, bound
from deltaconvert.passes.result import PassResult

OVER_LAST = (layer_norm, rms_norm, linear)  # whose last dimension is the channels


def channels_first(graph_module: GraphModule, lanes: int) -> PassResult:
    """Rewrite the graph in place."""
    rewriting = _Rewriting(graph_module, lanes)
    for frame in graph_module.graph.find_nodes(op="placeholder"):
        rewriting.turn(frame)
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and not node.meta["constant"]:
            rewriting.take(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return rewriting.result


def constant_first(x: Tensor) -> Tensor:
    """Return what broadcasts over ``N x C x H x W`` as ``x`` does over ``N x H x W x C``."""
    return x.reshape((1,) * (4 - x.dim()) + tuple(x.shape)).permute(CHANNELS_FIRST)


class _Rewriting:
    """One run of the pass."""

    def __init__(self, graph_module: GraphModule, lanes: int) -> None:
        self.module, self.graph, self.lanes = graph_module, graph_module.graph, lanes
        self.result = PassResult("channels_first")
        self.twins: dict[fx.Node, fx.Node] = {}

    def turn(self, frame: fx.Node) -> None:
        """Have a frame with its channels last come channels first, and permute it back."""
        if not (self._is_map(frame) and self._becomes_first(frame)):
            return
        readers = list(frame.users)
        frame.meta["value"] = frame.meta["value"].permute(CHANNELS_FIRST)
        frame.meta["turned"] = CHANNELS_FIRST
        back = write(self.module, call(permute, frame, dims=CHANNELS_LAST), frame.next, frame)
        for reader in readers:
            reader.replace_input_with(frame, back)
        self.result.changed.append(f"{frame.name}: channels last")

    def _becomes_first(self, frame: fx.Node) -> bool:
        """Whether a map is permuted to channels first, or would be here, maybe behind others."""
        waiting, seen = [frame], {frame}
        while waiting:
            for reader in waiting.pop().users:
                operator = registry.find(reader.target) if reader.op == "call_function" else None
                if _is_permute(reader, CHANNELS_FIRST):
                    return True
                if not (operator and operator.channels_first and self._is_map(reader)):
                    continue
                if reader.target in OVER_LAST:
                    if _has_form(reader, operator):
                        return True
                elif reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return False

    def take(self, node: fx.Node) -> None:
        """Rewrite one call, if it has another form and is on such maps."""
        if _is_permute(node, CHANNELS_FIRST) and _is_permute(node.args[0], CHANNELS_LAST):
            node.replace_all_uses_with(node.args[0].args[0])  # type: ignore[union-attr, arg-type]
            self.graph.erase_node(node)
            return
        operator = registry.find(node.target)
        if operator is None or operator.channels_first is None or not self._is_last(node):
            return
        try:
            meaning = operator.channels_first(*self._arguments(node, operator), **node.kwargs)
        except Refusal as refusal:
            self.result.refused[node.name] = str(refusal)
            return
        self._replace(node, meaning)

    def _is_last(self, node: fx.Node) -> bool:
        """Whether a call is on maps with their channels last, and results in one."""
        maps = [n for n in node.all_input_nodes if not n.meta["constant"]]
        if not all(self._is_map(n) for n in (*maps, node)):
            return False
        return node.target in OVER_LAST or any(_is_permute(n, CHANNELS_LAST) for n in maps)

    def _is_map(self, node: fx.Node) -> bool:
        value = node.meta["value"]
        return isinstance(value, Tensor) and value.dim() == 4 and len(value) == self.lanes

    def _arguments(self, node: fx.Node, operator: registry.Operator) -> tuple[Any, ...]:
        """Return a call's arguments with the maps and what broadcasts over them channels first."""
        weights = [a for name, a in bound(node, operator).items() if name in WEIGHTS]

        def turned(n: fx.Node) -> fx.Node:
            return n if n in weights else self._twin(n)
        arguments: tuple[Any, ...] = fx.map_arg(node.args, turned)
        return arguments

    def _twin(self, node: fx.Node) -> fx.Node:
        """Return the same value with its channels first."""
        if _is_permute(node, CHANNELS_LAST):
            return node.args[0]  # type: ignore[return-value]
        if node not in self.twins:
            value = node.meta["value"]
            if node.meta["constant"]:
                made = call(constant_first, node) if value.dim() else None
            else:
                made = call(permute, node, dims=CHANNELS_FIRST)
            self.twins[node] = write(self.module, made, node.next, node) if made else node
        return self.twins[node]

    def _replace(self, node: fx.Node, meaning: Call) -> None:
        """Write the call; the old node becomes its permutation back."""
        name = node.name
        new = write(self.module, meaning, node, node)
        node.op, node.target, node.args = "call_function", permute, (new,)
        node.kwargs, node.name = {"dims": CHANNELS_LAST}, f"{name}_channels_last"
        new.name = name
        node.meta["multiply_adds"] = 0
        self.result.changed.append(f"{name}: {meaning.function.__name__}")


def _has_form(node: fx.Node, operator: registry.Operator) -> bool:
    """Whether a call has a form for channels that come first; a norm of whole maps has none."""
    assert operator.channels_first
    try:
        operator.channels_first(*node.args, **node.kwargs)
    except Refusal:
        return False
    return True


def _is_permute(node: Any, dims: tuple[int, ...]) -> bool:
    return isinstance(node, fx.Node) and node.target is permute and bool(
        node.kwargs["dims"] == dims)
