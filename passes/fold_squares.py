"""Fold squares: a convolution of pixels that were put into channels reads the map itself.

Before: ``s = cat([select(x, rows=(0, 2, ...), cols=(0, 2, ...)), ... 4 of them], 1)``,
``y = conv2d(s, w, b)``; nothing else reads s.
After: ``y = conv2d(x, spread_filter(w, order, 2), b)`` of twice the kernel, stride and padding.

The focus of a YOLO, or a pixel unshuffle. The multiply-adds are the same, and no pixel is copied.
Behind `infer`, which finds the selections, and before `fuse`. Left alone is what joins more
channels than the backend wants: the wider convolution may have a faster way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators.cat import cat
from deltaconvert.operators.conv2d import conv2d
from deltaconvert.operators.pixel_unshuffle import pixel_unshuffle
from deltaconvert.operators.registry import call
from deltaconvert.operators.select import select
from deltaconvert.passes.annotate import computed, write
from deltaconvert.passes.result import PassResult

# A channel's place in the map it was picked from: channel, row and column of a square.
Places = list[tuple[int, int, int]]


def fold_squares(graph_module: GraphModule, most: int) -> PassResult:
    """Rewrite the graph in place.

    Args:
        graph_module: whose shapes are known.
        most: channels that a square's pixels are put into, where that is folded.
    """
    result = PassResult("fold_squares")
    for node in graph_module.graph.find_nodes(op="call_function", target=conv2d):
        squares, weight, *_ = node.args
        if node.meta["constant"] or not weight.meta["constant"]:
            continue
        found = _squares(squares)
        if found is None or len(squares.users) > 1:
            continue
        source, factor, places = found
        order = _order(places, source.meta["value"].shape[1], factor)
        if order is None or len(order) > most:
            continue
        if node.kwargs["groups"] != 1 or node.kwargs["dilation"] != (1, 1):
            result.refused[node.name] = "its filter would have gaps"
            continue
        _fold(graph_module, node, source, factor, order)
        result.changed.append(f"{node.name}: reads {source.name}, squares of {factor}")
    if result.changed:
        before = {node.name: node.meta.get("path", "") for node in graph_module.graph.nodes}
        graph_module.graph.eliminate_dead_code()
        left = {node.name for node in graph_module.graph.nodes}
        result.gone = [(name, path) for name, path in before.items() if name not in left]
        graph_module.recompile()
    return result


def _squares(node: Any) -> tuple[fx.Node, int, Places] | None:
    """Return the map whose pixels a value has as channels, the squares' side, and the places."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source: Any = node.args[0]
    if node.target is cat:
        return _joined(node)
    if node.target is pixel_unshuffle:
        factor: Any = node.kwargs["factor"]
        return source, factor, [(c, i, j) for c in range(source.meta["value"].shape[1])
                                for i in range(factor) for j in range(factor)]
    if node.target is not select:
        return None
    picks: Any = [node.kwargs[name] for name in ("channels", "rows", "cols")]
    channels, rows, cols = picks
    if rows is None and cols is None:
        found = _squares(source)
        return found and (*found[:2], [found[2][c] for c in channels])
    picked = _phase(source, rows, cols)
    channels = range(source.meta["value"].shape[1]) if channels is None else channels
    return picked and (source, picked[0], [(c, *picked[1:]) for c in channels])


def _joined(node: fx.Node) -> tuple[fx.Node, int, Places] | None:
    joined: Any = node.args[0]
    parts = [part for part in map(_squares, joined) if part]
    same = len(parts) == len(joined) and len({part[:2] for part in parts}) == 1
    if not same or node.kwargs["dim"] not in (1, -3):
        return None
    return (*parts[0][:2], [place for part in parts for place in part[2]])


def _phase(source: fx.Node, rows: Any, cols: Any) -> tuple[int, int, int] | None:
    """Return the side of squares, and the place in each that these rows and columns pick."""
    height, width = source.meta["value"].shape[2:]
    if rows is None or cols is None or height % len(rows):
        return None
    factor = height // len(rows)
    same = (factor > 1 and rows == tuple(range(rows[0], height, factor))
            and cols == tuple(range(cols[0], width, factor)) and len(cols) * factor == width)
    return (factor, rows[0], cols[0]) if same else None


def _order(places: Places, channels: int, factor: int) -> tuple[int, ...] | None:
    """Return where each place is among the channels, if each is there once."""
    every = [(c, i, j) for c in range(channels) for i in range(factor) for j in range(factor)]
    return tuple(map(places.index, every)) if sorted(places) == every else None


def _fold(graph_module: GraphModule, node: fx.Node, source: fx.Node, factor: int,
          order: tuple[int, ...]) -> None:
    settings: dict[str, Any] = dict(node.kwargs)
    weight: Any = node.args[1]
    spread = write(graph_module, call(spread_filter, weight, order, factor), node, node)
    dtype = weight.meta["value"].dtype
    if spread.meta["value"].dtype != dtype:
        spread.meta["value"] = computed(graph_module, spread).to(dtype)
    node.args = (source, spread, *node.args[2:])
    node.kwargs = settings | {name: tuple(factor * n for n in settings[name])
                              for name in ("stride", "padding")}


def spread_filter(weight: Tensor, order: tuple[int, ...], factor: int) -> Tensor:
    """Return the filter of the map whose pixels were put into channels.

    Args:
        weight: ``[C_out, C_in, kh, kw]``.
        order: the channel that holds channel, row and column of a square, ``C_in`` of them.
        factor: the squares' side.
    """
    return F.pixel_shuffle(weight[:, torch.tensor(order, device=weight.device)], factor)
