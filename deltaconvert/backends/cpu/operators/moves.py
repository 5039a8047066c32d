"""Nodes that only move numbers between maps and tokens: views of their inputs, joined or not.

What a detector's head does to its maps (flattened, joined, split, transposed) is a view of each
input, with strides of its own. So one loop compares and copies them, sixteen pixels at a time:
their lines stay in the first cache from channel to channel. It skips those that did not change,
where they are pixels of a map still.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends import reference
from deltaconvert.backends.base import Buffers, Scratch, Step
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Flags,
    Longs,
    Longs2,
    Numbers,
    entries,
    take,
    view,
)
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of, list_scratch
from deltaconvert.backends.cpu.frames.marks import any_mark
from deltaconvert.backends.cpu.frames.parts import DONE, GROUPS, TAKEN, Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.backends.cpu.maps.flat import flat, flat_map
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.operators.block import PIXELS, move_block
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode, fill
from deltaconvert.operators.cat import cat
from deltaconvert.state import Edge

_GROUP = 512  # pixels that a worker takes
# Of a piece: the address of its first number, how many from there on belong to it, its channels.
SOURCE, NUMBERS, CHANNELS = range(3)
# From a lane, a channel, a row and a pixel to the next: in the source, and in the output.
FROM, FIRST, TO = 3, 7, 8
# Of the source's mask, where pixels are its own: address, or 0, and marks of a lane.
MASK, PLANE, PIECE = 12, 13, 14


class Move(NamedTuple):
    """Views of the inputs, and where they go.

    Args:
        parts: of its step.
        pieces: int64 ``[K, PIECE]``, see above.
        groups: int64 ``[G, 6]``: piece, lane, first row and the one behind the last, first pixel
            and the one behind the last.
        out: the value.
        width, plane: of a lane of the mask.
        fresh: one a lane.
        mask, counts: see `Ending`.
        changed: int64 ``[lanes]``, where a lane is one pixel.
    """

    parts: Parts
    pieces: Longs2
    groups: Longs2
    out: Numbers
    width: int
    plane: int
    fresh: Flags
    mask: Bytes
    counts: Longs2
    changed: Longs


def refusal(node: DeltaNode) -> str | None:
    """Return why this node must run elsewhere."""
    about = node.about
    specs = (*about.inputs, about.output)
    if about.threshold or not all(spec.has_lanes for spec in specs):
        return "holds back, or has no lanes"
    if not (about.output.is_map or len(about.output.shape or ()) == 3):
        return "neither a map nor tokens"
    if about.output.is_map and any(spec.is_map for spec in about.inputs):
        return "moves pixels between maps"
    try:
        found = _views(node, _shapes(node))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        found = None
    return None if found else "computes"


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of its pixels."""
    return list_scratch(node)


def _shapes(node: DeltaNode) -> list[Tensor]:
    """Return tensors without numbers, as the inputs lie where they are in no concatenation."""
    return [torch.empty(spec.shape or (), dtype=spec.dtype, device="meta",
                        memory_format=torch.channels_last if len(spec.shape or ()) == 4
                        else torch.contiguous_format) for spec in node.about.inputs]


def _views(node: DeltaNode, values: list[Tensor]) -> tuple[int, list[Tensor]] | None:
    """Return the views that the output is made of; nothing if it is not.

    They lie side by side along the first that is returned, a dimension of a map.
    """
    about = node.about
    calls = getattr(about.function, "calls", [(about.function, about.args, about.params)])
    found: list[Any] = list(values)
    for function, args, params in calls[:-1]:
        found.append(function(*fill(args, tuple(found)), **fill(params, tuple(found))))
        if any(_owner(part, values) is None for part in _tensors(found[-1])):
            return None
    function, args, params = calls[-1]
    args, params = fill(args, tuple(found)), fill(params, tuple(found))
    along, parts = 3, []
    if function is not cat:
        parts = [function(*args, **params)]
    elif not about.output.is_map and params["dim"] % 3:
        along, parts = (1, 3)[params["dim"] % 3 - 1], list(args[0])
    same = parts and all(_owner(part, values) is not None for part in parts)
    return (along, parts) if same else None


def _tensors(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _owner(part: Any, values: list[Tensor]) -> int | None:
    """Return which value's memory a tensor is a view of, in numbers as they are."""
    if not isinstance(part, Tensor) or part.is_neg() or part.is_conj():
        return None
    memory = part.untyped_storage()._cdata
    return next((i for i, value in enumerate(values) if part.dtype == value.dtype
                 and value.untyped_storage()._cdata == memory), None)


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> Step:
    """Return the step of a node that moves numbers."""
    shapes = _shapes(node)
    views, known = _views(node, [e.value for e in buffers.inputs]), _views(node, shapes)
    if views is None or known is None:  # in a concatenation, a view may have to be a copy
        return reference.create(Config()).bind(node, weights, buffers)
    edge, state, (along, parts) = buffers.output, buffers.state, views
    value = _with_rows(edge.value)
    out = flat_map(edge.value).data if edge.spec.is_map else flat(edge.value)
    at, pieces = 0, list[list[int]]()
    groups: list[tuple[int, ...]] = []
    for part, like in zip(map(_with_rows, parts), known[1], strict=True):
        owner = _owner(like, shapes) or 0
        groups += _groups(len(pieces), part)
        pieces.append(_piece(part, value.narrow(along, at, part.shape[along]), value,
                             buffers.inputs[owner]))
        at += part.shape[along]
    head = head_of(node, buffers, engine, 1.0, edge.mask.numel(), fixed_ns=value.numel())
    task = Move(head.parts, np.array(pieces, np.int64), np.array(groups, np.int64), out,
                value.shape[3], edge.spec.pixels, state.fresh, flat(edge.mask), head.counts,
                np.zeros(value.shape[0], np.int64))
    return CompiledStep(node, engine, head, MOVE.of(out), task, PREPARE.of(out))


def _with_rows(value: Tensor) -> Tensor:
    """Return tokens as a map of one row."""
    return value[:, :, None] if value.dim() == 3 else value


def _piece(part: Tensor, place: Tensor, whole: Tensor, edge: Edge) -> list[int]:
    source = edge.value
    numbers = 1 + sum((size - 1) * step
                      for size, step in zip(part.shape, part.stride(), strict=True))
    first = part.storage_offset() - source.storage_offset()
    own = (edge.spec.is_map and part.shape[2] == 1 and part.shape[3] == edge.spec.pixels
           and part.shape[0] == source.shape[0] and part.stride(3) == source.stride(3)
           and source.stride(2) == source.stride(3) * source.shape[3]
           and (part.shape[0] == 1 or part.stride(0) == source.stride(0))
           and 0 <= first <= first + (part.shape[1] - 1) * part.stride(1) < source.stride(3))
    return [part.data_ptr(), numbers, part.shape[1], *part.stride(),
            int(place.storage_offset() - whole.storage_offset()), *place.stride(),
            edge.mask.data_ptr() if own else 0, edge.spec.pixels]


def _groups(piece: int, part: Tensor) -> list[tuple[int, ...]]:
    lanes, _, height, width = part.shape
    rows = max(_GROUP // width, 1)
    return [(piece, lane, y, min(y + rows, height), x, min(x + _GROUP, width))
            for lane, y, x in itertools.product(range(lanes), range(0, height, rows),
                                                range(0, width, _GROUP))]


@loop
def hand_out(task, workers):
    """Hand out groups instead of pixels."""
    task.parts.progress[GROUPS] = task.groups.shape[0]
    task.parts.progress[DONE] = 0
    task.changed[:] = 0


@loop
def move_groups(task, worker):
    """Move groups until all are taken; the last publishes lanes of one pixel."""
    progress = task.parts.progress
    while True:
        group = take(progress.ctypes.data + 8 * TAKEN, 1)
        if group >= progress[GROUPS]:
            return
        move_group(task, task.groups[group], worker)
        if take(progress.ctypes.data + 8 * DONE, 1) == progress[GROUPS] - 1 and task.plane == 1:
            for lane in range(task.changed.shape[0]):
                if task.changed[lane] != 0 or task.fresh[lane]:
                    task.mask[lane] = 1
                    task.counts[worker, lane] += 1


@loop
def move_group(task, group, worker):
    """Compare and copy some pixels of a lane, and mark those that differ."""
    piece, lane, size = task.pieces[group[0]], group[1], task.out.itemsize
    source = view(piece[SOURCE], piece[NUMBERS], task.out)
    marks = piece[MASK] + lane * piece[PLANE]
    step, out_step = piece[FROM + 3], piece[TO + 3]
    for y in range(group[2], group[3]):
        for x in range(group[4], group[5], PIXELS):
            count = min(PIXELS, group[5] - x)
            if piece[MASK] != 0 and not task.fresh[lane] and not any_mark(marks + x, count):
                continue
            here = lane * piece[FROM] + y * piece[FROM + 2] + x * step
            there = piece[FIRST] + lane * piece[TO] + y * piece[TO + 2] + x * out_step
            if count == PIXELS:
                differ = move_block(
                    task.out, piece[SOURCE] + size * here, size * step, size * piece[FROM + 1],
                    task.out.ctypes.data + size * there, size * out_step, size * piece[TO + 1],
                    piece[CHANNELS])
            else:
                differ = move_pixels(source, here, task.out, there, count, piece)
            if task.plane == 1:
                if differ != 0:  # others may write it meanwhile
                    task.changed[lane] = 1
            elif differ != 0 or task.fresh[lane]:
                mark_pixels(task, lane, y * task.width + x, count, differ, worker)


@loop
def move_pixels(source, here, out, there, count, piece):
    """Copy all channels of fewer pixels; return a bit for each that differed."""
    differ = np.int64(0)
    for c in range(piece[CHANNELS]):
        for k in range(count):
            i = here + c * piece[FROM + 1] + k * piece[FROM + 3]
            j = there + c * piece[TO + 1] + k * piece[TO + 3]
            if load(source, i) != load(out, j):
                out[j] = source[i]
                differ |= np.int64(1) << k
    return differ


@loop
def mark_pixels(task, lane, first, count, differ, worker):
    """Mark pixels of a map that differ, or all of a fresh lane."""
    for k in range(count):
        if differ >> k & 1 or task.fresh[lane]:
            task.mask[lane * task.plane + first + k] = 1
            task.counts[worker, lane] += 1


PREPARE, MOVE = entries(Move, hand_out), entries(Move, move_groups)
