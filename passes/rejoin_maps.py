"""Rejoin maps: what is computed over the channels of tokens or windows is computed on their map.

Before: ``linear(reshape(x, (N, H * W, C)), w, b)``, x of ``N x H x W x C``; or x cut into windows.
After: ``reshape(linear(x, w, b), (N, H * W, C'))``.

A matrix product or a norm over the last dimension, and whatever is pointwise, does not care in
which order the pixels are, or how they are grouped. So it changes places with the moves in front
of it (first half) or behind it (second half) that leave the last dimension alone, where these
begin or end in a map. `channels_first` then makes local nodes of it. An operator of several
inputs, such as a residual of tokens, takes the others through the same moves backwards.

Left between moves are attention and other things that weigh pixels against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators import registry
from deltaconvert.operators.layer_norm import layer_norm, rms_norm
from deltaconvert.operators.linear import linear
from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST, permute
from deltaconvert.operators.registry import Call, call
from deltaconvert.operators.reshape import flatten, reshape
from deltaconvert.passes.annotate import write
from deltaconvert.passes.partition import WEIGHTS, bound
from deltaconvert.passes.result import PassResult

SAME_ORDER = frozenset({"contiguous", "squeeze", "unsqueeze", "unflatten"})
SWAPS = frozenset({"transpose", "swapaxes", "swapdims"})


@dataclass(frozen=True)
class Move:
    """One rearrangement of pixels, whatever the number of channels.

    Args:
        before, after: the dimensions but for the last.
        dims: of a permutation; nothing for a reshape.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    dims: tuple[int, ...] | None = None

    def on(self, x: Any, channels: int) -> Call:
        """Return the call of this move."""
        if self.dims is None:
            return call(reshape, x, shape=(*self.after, channels))
        return call(permute, x, dims=self.dims)

    def back(self) -> Move:
        """Return the move that undoes it."""
        if self.dims is None:
            return Move(self.after, self.before)
        return Move(self.after, self.before,
                    tuple(self.dims.index(i) for i in range(len(self.dims))))


def rejoin_maps(graph_module: GraphModule, lanes: int) -> PassResult:
    """Rewrite the graph in place."""
    rewriting = _Rewriting(graph_module, lanes)
    calls = [n for n in graph_module.graph.nodes
             if n.op.startswith("call_") and not n.meta["constant"]]
    for node in calls:
        rewriting.name_channels(node)
    for node in calls:
        rewriting.pull(node)
    for node in reversed(list(graph_module.graph.nodes)):
        rewriting.push(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return rewriting.result


class _Rewriting:
    """One run of the pass."""

    def __init__(self, graph_module: GraphModule, lanes: int) -> None:
        self.module, self.graph, self.lanes = graph_module, graph_module.graph, lanes
        self.result = PassResult("rejoin_maps")

    def name_channels(self, node: fx.Node) -> None:
        """Write tokens of a map, and a map of tokens, as one move and a permutation of the map.

        ``transpose(flatten(x, 2), 1, 2)`` has its channels last only at the end.
        """
        source = _source(node)
        if not _is_tensor(source) or not _is_tensor(node):
            return
        shape, behind = _shape(node), _shape(source)
        if _swaps(node) and self._is_map(_source(source)) and _joins(source) and (
                behind == (*_shape(_source(source))[:2], shape[1])):
            last = call(permute, _source(source), dims=CHANNELS_LAST)
            self._become(node, call(reshape, last, shape=shape))
        elif self._is_map(node) and _joins(node) and _swaps(source) and (
                shape[:2] == behind[:2]):
            last = call(reshape, source.args[0], shape=(shape[0], *shape[2:], shape[1]))
            self._become(node, call(permute, last, dims=CHANNELS_FIRST))

    def pull(self, node: fx.Node) -> None:
        """Compute a call in front of the moves that its inputs went through."""
        if self._is_map(node) or not _takes_any_order(node):  # a map: nothing to gain
            return
        inputs = [n for n in node.all_input_nodes if not n.meta["constant"]]
        found = next((f for f in map(self._origin, inputs) if f), None)
        weights = [a for name, a in bound(node, registry.find(node.target)).items()  # type: ignore[arg-type]
                   if name in WEIGHTS]
        others = [n for n in node.all_input_nodes if n not in weights]
        if not found or not all(_fits(n, inputs[0]) for n in others):
            return
        moves = found[1]

        def turned(n: fx.Node) -> fx.Node:
            if n in weights or _shape(n)[:-1] != _shape(node)[:-1]:
                return n
            origin = self._origin(n)
            if origin and origin[1] == moves:
                return origin[0]
            return self._through([m.back() for m in reversed(moves)], n, node)
        self._move(node, fx.map_arg(node.args, turned), moves)

    def push(self, node: fx.Node) -> None:
        """Compute a matrix product behind the moves to a map that alone read it."""
        if node.op != "call_function" or node.target is not linear or self._is_map(node):
            return
        moves: list[Move] = []
        reader, end, length = node, None, 0
        while len(reader.users) == 1 and (move := _move_of(next(iter(reader.users)))):
            reader = next(iter(reader.users))
            moves.append(move)
            if self._is_map(reader):
                end, length = reader, len(moves)
        source = node.args[0]
        if end is None or not isinstance(source, fx.Node):
            return
        moved = self._through(moves[:length], source, end)
        self._become(end, Call(linear, (moved, *node.args[1:]), dict(node.kwargs)), node)

    def _origin(self, node: fx.Node) -> tuple[fx.Node, list[Move]] | None:
        """Return the map that a value is an arrangement of, and the moves from it."""
        moves: list[Move] = []
        found = None
        while move := _move_of(node):
            moves.insert(0, move)
            node = node.args[0]  # type: ignore[assignment]
            if self._is_map(node) and not _has_channels_first(node):
                found = node, list(moves)
        return found

    def _move(self, node: fx.Node, args: tuple[Any, ...], moves: list[Move]) -> None:
        """Write a call on maps in front of a node, which becomes what the moves make of it."""
        new = write(self.module, Call(node.target, args, dict(node.kwargs)), node, node)  # type: ignore[arg-type]
        moved = self._through(moves, new, node)
        name = node.name
        node.replace_all_uses_with(moved)
        self.graph.erase_node(node)
        new.name = name
        self.result.changed.append(f"{name}: computed on the map")

    def _become(self, node: fx.Node, meaning: Call, like: fx.Node | None = None) -> None:
        new = write(self.module, meaning, node, like or node)
        node.replace_all_uses_with(new)
        if like:
            self.result.changed.append(f"{like.name}: computed on the map")

    def _through(self, moves: list[Move], node: fx.Node, before: fx.Node) -> fx.Node:
        for move in moves:
            node = write(self.module, move.on(node, _shape(node)[-1]), before, before)
        return node

    def _is_map(self, node: Any) -> bool:
        return _is_tensor(node) and len(_shape(node)) == 4 and _shape(node)[0] == self.lanes


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("value"), Tensor)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["value"].shape)


def _source(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def _has_channels_first(node: fx.Node) -> bool:
    """Whether the last dimension of a map is its width: frames, and what windows slide over."""
    operator = registry.find(node.target) if node.op == "call_function" else None
    return node.op == "placeholder" or bool(
        operator and operator.footprints and not operator.channels_first)


def _takes_any_order(node: fx.Node) -> bool:
    """Whether a call means the same wherever the pixels are: all but the last dimension."""
    operator = registry.find(node.target) if node.op == "call_function" else None
    if operator is None or not _is_tensor(node):
        return False
    if node.target in (layer_norm, rms_norm):
        return len(node.kwargs["shape"]) == 1  # type: ignore[arg-type]
    same = operator.channels_first
    return node.target is linear or (isinstance(same, partial) and same.func is call)


def _fits(node: fx.Node, like: fx.Node) -> bool:
    """Whether a value is one number a pixel and channel of another's, or the same everywhere."""
    return _is_tensor(node) and (
        _shape(node) == _shape(like) or (node.meta["constant"] and (
            len(_shape(node)) <= 1)))


def _move_of(node: fx.Node) -> Move | None:
    """Return what a call does to pixels, if it moves them and leaves channels alone."""
    source = _source(node)
    if not (_is_tensor(source) and _is_tensor(node)):
        return None
    before, after = _shape(source), _shape(node)
    if not before or not after or before[-1] != after[-1]:
        return None
    if _keeps_order(node) and math.prod(before) == math.prod(after):
        return Move(before[:-1], after[:-1])
    dims = _order(node, len(before))
    if dims is None or dims[-1] != len(before) - 1:
        return None
    return Move(before[:-1], after[:-1], dims)


def _keeps_order(node: fx.Node) -> bool:
    return node.target in (reshape, flatten) or (
        node.op == "call_method" and node.target in SAME_ORDER) or (
        node.target in (torch.squeeze, torch.unsqueeze))


def _joins(node: fx.Node) -> bool:
    return _keeps_order(node) and _is_tensor(_source(node))


def _order(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """Return the order of the dimensions that a permutation or a transposition makes."""
    if node.target is permute:
        order: Any = node.kwargs["dims"]
        return tuple(d % rank for d in order)
    swaps = node.target in SWAPS if node.op == "call_method" else node.target in (
        torch.transpose, torch.swapaxes, torch.swapdims)
    pair: Any = node.args[1:]
    if not swaps or len(pair) != 2 or not all(isinstance(d, int) for d in pair):
        return None
    dims = list(range(rank))
    a, b = (d % rank for d in pair)
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def _swaps(node: Any) -> bool:
    """Whether a call swaps channels and places of ``N x C x L``."""
    return _is_tensor(_source(node)) and _order(node, len(_shape(_source(node)))) == (0, 2, 1)
