"""Find selects: a chain of views that only picks becomes one `select`.

Before: ``chunk``, ``x[:, ::2]``, ``view``/``transpose``/``view``, ``flip``, ``channel_shuffle``.
After: ``select(x, channels=..., rows=..., cols=...)``.

Part of `infer`, because it needs shapes. What a chain does is not recognised by its
form but found out: it is run once on the numbers 0, 1, 2, ... in the shape of the map
it starts from. If what comes out are the numbers that picking channels, rows and columns
would give, and every lane keeps to itself, then that is what the chain does.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.operators.reshape import flatten, reshape
from deltaconvert.operators.select import select
from deltaconvert.passes.result import PassResult

METHODS = frozenset({
    "transpose", "permute", "swapaxes", "movedim", "squeeze", "unsqueeze", "unflatten", "chunk",
    "split", "tensor_split", "unbind", "narrow", "select", "flip", "roll", "index_select",
    "view_as", "reshape_as"})
FUNCTIONS = frozenset(
    {getattr(torch, name) for name in METHODS if hasattr(torch, name)}
    | {operator.getitem, reshape, flatten, torch.channel_shuffle, nn.functional.channel_shuffle})
LARGEST = 1 << 28  # numbers: beyond, the test itself would take gigabytes


def find_selects(graph: fx.Graph, result: PassResult) -> None:
    """Rewrite the graph in place."""
    traces: dict[fx.Node, tuple[fx.Node, Any]] = {}
    for node in list(graph.nodes):
        if not _only_moves(node):
            continue
        start, numbers = traces.get(node.args[0]) or _start(node.args[0])
        if start is None:
            continue
        moved = _run(node, numbers)
        if moved is None:
            continue
        traces[node] = (start, moved)
        picks = _picks(moved, start.meta["value"].shape)
        if picks is not None:
            _replace(graph, node, start, picks)
            result.changed.append(f"{node.name}: picks from {start.name}")
    graph.eliminate_dead_code()


def _only_moves(node: fx.Node) -> bool:
    if node.meta.get("constant") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if len(node.all_input_nodes) > 1:
        return False
    return (node.op == "call_method" and node.target in METHODS) or (
        node.op == "call_function" and node.target in FUNCTIONS)


def _start(node: fx.Node) -> tuple[fx.Node | None, Any]:
    value = node.meta["value"]
    if not isinstance(value, Tensor) or value.dim() != 4 or value.numel() > LARGEST:
        return None, None
    return node, torch.arange(value.numel()).view(value.shape)


def _run(node: fx.Node, numbers: Any) -> Any:
    try:
        if node.op == "call_method":
            return getattr(numbers, str(node.target))(*node.args[1:], **node.kwargs)
        return node.target(numbers, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


Picks = tuple[tuple[int, ...] | None, ...]


def _picks(moved: Any, shape: torch.Size) -> Picks | None:
    """Return channels, rows and columns if these numbers are what picking them gives."""
    if not isinstance(moved, Tensor) or moved.dim() != 4 or moved.numel() == 0:
        return None
    lanes, channels, height, width = shape
    if moved.shape[0] != lanes:
        return None
    first = moved[0]
    picked = (first[:, 0, 0] // (height * width), first[0, :, 0] // width % height,
              first[0, 0, :] % width)
    lane = torch.arange(lanes).view(-1, 1, 1, 1) * channels * height * width
    expected = (lane + picked[0].view(-1, 1, 1) * height * width + picked[1].view(-1, 1) * width
                + picked[2])
    if not torch.equal(moved, expected):
        return None
    return tuple(None if torch.equal(p, torch.arange(size)) else tuple(p.tolist())
                 for p, size in zip(picked, (channels, height, width), strict=True))


def _replace(graph: fx.Graph, node: fx.Node, start: fx.Node, picks: Picks) -> None:
    if picks == (None, None, None):
        node.replace_all_uses_with(start)
        graph.erase_node(node)
        return
    node.op, node.target, node.args = "call_function", select, (start,)
    node.kwargs = dict(zip(("channels", "rows", "cols"), picks, strict=True))


