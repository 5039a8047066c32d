"""Find selects: a chain of views that only picks becomes one `select`.

Before: ``chunk``, ``x[:, ::2]``, ``view``/``transpose``/``view``, ``flip``, ``channel_shuffle``.
After: ``select(x, channels=..., rows=..., cols=...)``.

Before: ``x.permute(0, 2, 3, 1)[:, ::2]``, ``x.movedim(1, -1)``.
After: ``permute(select(x, rows=...), dims=(0, 2, 3, 1))``, ``permute(x, dims=(0, 2, 3, 1))``.

Part of `infer`, because it needs shapes. What a chain does is not recognised by its
form but found out: it is run once on the numbers 0, 1, 2, ... in the shape of the map
it starts from. If what comes out are the numbers that picking channels, rows and columns
would give, and every lane keeps to itself, then that is what the chain does; or picking, and
then moving the channels to the end or from there; or a shuffle (see `find_shuffles`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.operators.permute import CHANNELS_FIRST, CHANNELS_LAST, permute
from deltaconvert.operators.reshape import flatten, reshape
from deltaconvert.operators.select import select
from deltaconvert.passes.find_shuffles import Steps, shuffle_steps
from deltaconvert.passes.result import PassResult

METHODS = frozenset({
    "transpose", "permute", "swapaxes", "movedim", "squeeze", "unsqueeze", "unflatten", "chunk",
    "split", "tensor_split", "unbind", "narrow", "select", "flip", "roll", "index_select",
    "swapdims", "moveaxis", "expand", "repeat", "tile", "repeat_interleave", "t"})
LIKE_ANOTHER = frozenset({"view_as", "reshape_as", "expand_as"})
FUNCTIONS = frozenset(
    {getattr(torch, name) for name in METHODS if hasattr(torch, name)}
    | {operator.getitem, reshape, flatten, permute, torch.channel_shuffle,
       nn.functional.channel_shuffle})
AS_THEY_ARE = (0, 1, 2, 3)
ORDERS = (AS_THEY_ARE, CHANNELS_LAST, CHANNELS_FIRST)
LARGEST = 1 << 28  # numbers: beyond, the test itself would take gigabytes


def find_selects(graph: fx.Graph, result: PassResult) -> None:
    """Rewrite the graph in place."""
    traces: dict[fx.Node, tuple[fx.Node, Any]] = {}
    for node in list(graph.nodes):
        _spell_out_shape(node)
        if not only_moves(node):
            continue
        start, numbers = traces.get(node.args[0]) or _start(node.args[0])
        if start is None:
            continue
        moved = _run(node, numbers)
        if moved is None:
            continue
        traces[node] = (start, moved)
        steps = _steps(moved, start.meta["value"].shape)
        if steps is not None:
            _replace(graph, node, start, steps)
            result.changed.append(f"{node.name}: picks from {start.name}")
    graph.eliminate_dead_code()


def _spell_out_shape(node: fx.Node) -> None:
    """Put the shape itself in the place of a tensor that has it."""
    if node.op == "call_method" and node.target in LIKE_ANOTHER and len(node.args) == 2:
        other = node.args[1]
        if isinstance(other, fx.Node) and isinstance(other.meta["value"], Tensor):
            node.target = str(node.target).removesuffix("_as")
            node.args = (node.args[0], tuple(other.meta["value"].shape))


def only_moves(node: fx.Node) -> bool:
    """Whether a call moves the numbers of its first argument, by settings that are constant."""
    if node.meta.get("constant") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if any(not n.meta["constant"] for n in node.all_input_nodes[1:]):
        return False
    return (node.op == "call_method" and node.target in METHODS) or (
        node.op == "call_function" and node.target in FUNCTIONS)


def moves_a_tensor(node: fx.Node) -> bool:
    """Whether a call moves a tensor, or parts of one; not what an unknown function returned."""
    while only_moves(node):
        node = node.args[0]  # type: ignore[assignment]
        if isinstance(node.meta["value"], Tensor):
            return True
    return False


def _start(node: fx.Node) -> tuple[fx.Node | None, Any]:
    value = node.meta["value"]
    if not isinstance(value, Tensor) or value.dim() != 4 or value.numel() > LARGEST:
        return None, None
    return node, torch.arange(value.numel(), device="cpu").view(value.shape)


def _run(node: fx.Node, numbers: Any) -> Any:
    args, kwargs = fx.map_arg((node.args[1:], dict(node.kwargs)), lambda n: n.meta["value"])
    try:
        if node.op == "call_method":
            return getattr(numbers, str(node.target))(*args, **kwargs)
        return node.target(numbers, *args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


Picks = tuple[tuple[int, ...] | None, ...]


def _steps(moved: Any, shape: torch.Size) -> Steps | None:
    """Return the calls that do what led from 0, 1, 2, ... in ``shape`` to these numbers."""
    if not isinstance(moved, Tensor) or moved.dim() != 4 or moved.numel() == 0:
        return None
    for order in ORDERS:
        picks = _picks(moved.permute([order.index(d) for d in range(4)]), shape)
        if picks is not None:
            settings = dict(zip(("channels", "rows", "cols"), picks, strict=True))
            steps: Steps = [] if picks == (None, None, None) else [(select, settings)]
            return steps if order == AS_THEY_ARE else [*steps, (permute, {"dims": order})]
    return shuffle_steps(moved, shape)


def _picks(moved: Tensor, shape: torch.Size) -> Picks | None:
    """Return channels, rows and columns if these numbers are what picking them gives."""
    lanes, channels, height, width = shape
    if moved.shape[0] != lanes:
        return None
    first = moved[0]
    picked = (first[:, 0, 0] // (height * width), first[0, :, 0] // width % height,
              first[0, 0, :] % width)
    lane = torch.arange(lanes, device="cpu").view(-1, 1, 1, 1) * channels * height * width
    expected = (lane + picked[0].view(-1, 1, 1) * height * width + picked[1].view(-1, 1) * width
                + picked[2])
    if not torch.equal(moved, expected):
        return None
    return tuple(None if torch.equal(p, torch.arange(size, device="cpu")) else tuple(p.tolist())
                 for p, size in zip(picked, (channels, height, width), strict=True))


def _replace(graph: fx.Graph, node: fx.Node, start: fx.Node, steps: Steps) -> None:
    if not steps:
        node.replace_all_uses_with(start)
        graph.erase_node(node)
        return
    for function, settings in steps[:-1]:
        with graph.inserting_before(node):
            made = graph.call_function(function, (start,), settings)
        made.meta.update(node.meta, value=function(start.meta["value"], **settings))
        start = made
    node.op, node.target, node.args = "call_function", steps[-1][0], (start,)
    node.kwargs = steps[-1][1]
