"""Lists of candidates: which kernel call makes them, once for all nodes that read alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda.context import Context, Lists, changes_name, size_of
from deltaconvert.cuda.arguments import MOST_SOURCES, CandidateArgs, MaskSource
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode

WARP, THREADS, BLOCKS_A_PROCESSOR = 32, 256, 4
STRIP = 8  # pixels that a thread looks at together
MOST_SPAN = 60  # columns that a strip reads: bits of a number, and three to align them
TAPS, WINDOW, EVERYTHING, ONE, STRIPS, SAME, PATCHES = range(7)  # `Reads` in masks.cu
LIST_BYTES = 4 * (THREADS * STRIP + 2 * THREADS // WARP + 1)  # `Staged` in masks.cu
STRIP_READS = np.dtype([("first", np.int32), ("span", np.int32), ("unused", np.int32, 2),
                        ("bits", np.uint64, STRIP)])  # `StripReads` in masks.cu


@dataclass
class Tables:
    """Footprints on the device, each once a program; and who lists what changed for whom.

    A node that reads each pixel of one edge at its own place needs no list of its own: its
    candidates are what the edge's producer changed, and that lists it as it goes.
    """

    device: torch.device
    producers: set[str] = field(default_factory=set)
    markers: set[str] = field(default_factory=set)  # whose producers can keep masks as bits
    bits: dict[str, int] = field(default_factory=dict)  # words of those that a reader wants
    unions: set[str] = field(default_factory=set)  # `joint_name` of those that are made
    kept: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    strips: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    def reads_changes(self, node: DeltaNode) -> bool:
        """Whether a node's candidates are what changed of its one input."""
        about = node.about
        return (about.rule == "local" and len(about.inputs) == 1
                and about.footprints[0].is_identity and about.inputs[0].name in self.producers)

    def of(self, footprint: Footprint) -> tuple[int, int]:
        """Return the addresses of rows and columns."""
        key = (footprint.key(), footprint.size_out)
        if key not in self.kept:
            rows, cols = (torch.from_numpy(np.array(t, np.int32, order="C")).to(self.device)
                          for t in (footprint.rows, footprint.cols))
            self.kept[key] = rows, cols
        rows, cols = self.kept[key]
        return rows.data_ptr(), cols.data_ptr()

    def strips_of(self, footprint: Footprint) -> int | None:
        """Return the address of what strips of columns read, if those are near each other."""
        key = (*footprint.key(), footprint.size_out, STRIP)
        if key not in self.strips:
            made = strip_reads(footprint.cols)
            self.strips[key] = None if made is None else torch.from_numpy(
                made.view(np.uint8)).to(self.device)
        kept = self.strips[key]
        return None if kept is None else kept.data_ptr()


def list_name(node: DeltaNode, period: tuple[int, int] = (1, 1)) -> str:
    """Name the list: equal for nodes with the same candidates."""
    about = node.about
    digest = hashlib.sha1(repr([[s.name for s in about.inputs], about.rule == "local", period,
                                about.output.mask_shape]).encode())
    for footprint in about.footprints:
        digest.update(repr(footprint.key()).encode())
    return f"cuda.list.{digest.hexdigest()}"


def list_scratch(node: DeltaNode, tables: Tables,
                 period: tuple[int, int] = (1, 1)) -> Scratch:
    """Return the memory of a node's list."""
    if tables.reads_changes(node):
        source = node.about.inputs[0]
        return Scratch(changes_name(source.name), 4 * math.prod(source.mask_shape))
    return Scratch(list_name(node, period), 4 * math.prod(node.about.output.mask_shape))


def candidates(node: DeltaNode, buffers: Buffers, context: Context, tables: Tables,
               period: tuple[int, int] = (1, 1)) -> tuple[Lists, list[Launch]]:
    """Return a node's list, and the launch that makes it where no earlier node has.

    A local node's follow from its footprints; any other node has all pixels or none.
    """
    name = list_name(node, period)
    if name in context.lists:
        return context.lists[name], []
    if tables.reads_changes(node):
        read = buffers.inputs[0].spec.name
        made = Lists(buffers.scratch[changes_name(read)].data_ptr(),
                     context.tallies[read].changed, 1)
        context.lists[name] = made
        return made, []
    made, launch = list_of(node, buffers, context, tables, period)
    context.lists[name] = made
    return made, [launch]


def list_of(node: DeltaNode, buffers: Buffers, context: Context, tables: Tables,
            period: tuple[int, int] = (1, 1)) -> tuple[Lists, Launch]:
    """Return a list, and the launch that makes it, of a node that has one of its own."""
    name = list_name(node, period)
    edge, phases = buffers.output, period[0] * period[1]
    height, width = size_of(edge)
    counts = context.count(phases)
    args = CandidateArgs(
        fresh=context.fresh_flags(edge.spec.has_lanes), list=buffers.scratch[name].data_ptr(),
        counts=context.counter(counts), lanes=edge.mask.shape[0], height=height, width=width,
        period_y=period[0], period_x=period[1], sources=len(buffers.inputs))
    for i, source in enumerate(buffers.inputs):
        args.source[i] = MaskSource(mask=source.mask.data_ptr(),
                                    changed=context.changed_counter(source))
        if node.about.rule == "local":
            _read(args.source[i], node.about.footprints[i], tables, period)
            if args.source[i].reads == PATCHES:
                args.together = 1
        else:
            args.source[i].reads = EVERYTHING
    strips = edge.mask.shape[0] * -(-height // period[0]) * -(-width // (period[1] * STRIP))
    grid = blocks(context, strips, THREADS // WARP if args.together else THREADS), phases
    launch = Launch(kernel("masks.cu", "find_candidates", torch.float32), args, grid, THREADS,
                    LIST_BYTES)
    return Lists(args.list, counts, phases), launch


def _read(source: MaskSource, footprint: Footprint, tables: Tables,
          period: tuple[int, int]) -> None:
    source.height, source.width = footprint.size_in
    source.taps_y, source.taps_x = footprint.taps
    if footprint.size_in == footprint.taps == (1, 1) and min(footprint.rows.min(),
                                                             footprint.cols.min()) == 0:
        source.reads = ONE
        return
    apart = period != (1, 1)  # a strip's pixels are no neighbours
    if footprint.is_identity and not apart:
        source.reads = SAME
        return
    rows, cols = windows(footprint)
    near = rows and cols and (
        (STRIP - 1) * cols[1] + (source.taps_x - 1) * cols[2] < MOST_SPAN)
    if not apart and rows and cols and (near or cols[2] == 1):
        source.reads = WINDOW if near else PATCHES
        source.first_y, source.step_y, source.spread_y = rows
        source.first_x, source.step_x, source.spread_x = cols
    else:
        source.reads = TAPS
        source.rows, source.cols = tables.of(footprint)
        strips = None if apart else tables.strips_of(footprint)
        if strips is not None:
            source.reads, source.cols = STRIPS, strips


def strip_reads(cols: np.ndarray) -> np.ndarray | None:
    """Return `STRIP_READS` of a table ``[width_out, taps]``: nothing, if a strip's are far apart.

    Args:
        cols: input columns, or -1 for none.
    """
    taps = cols.shape[1]
    padded = np.full((-(-len(cols) // STRIP) * STRIP, taps), -1, np.int64)
    padded[:len(cols)] = cols
    strips = padded.reshape(-1, STRIP, taps)
    there = strips >= 0
    last = strips.max((1, 2))
    first = np.minimum(np.where(there, strips, np.iinfo(np.int64).max).min((1, 2)), last + 1)
    if (last - first).max() >= MOST_SPAN:
        return None
    made = np.zeros(len(strips), STRIP_READS)
    made["first"], made["span"] = first, last + 1 - first
    places = np.where(there, strips - first[:, None, None], 0).astype(np.uint64)
    made["bits"] = np.bitwise_or.reduce(
        np.where(there, np.uint64(1) << places, np.uint64(0)), axis=2)
    return made


def windows(footprint: Footprint) -> tuple[tuple[int, int, int] | None, ...]:
    """Return first, step and spread of rows and of columns, where a footprint is a window."""
    return tuple(_window(table, size) for table, size in zip(
        (footprint.rows, footprint.cols), footprint.size_in, strict=True))


def _window(table: np.ndarray, size: int) -> tuple[int, int, int] | None:
    """Return first, step and spread of a table that is a window's: see `MaskSource`."""
    there = table >= 0
    places, taps = np.indices(table.shape)

    def difference(axis: int) -> int:
        both = np.diff(table, axis=axis)[np.logical_and(*(
            there.take(range(i, there.shape[axis] - 1 + i), axis) for i in range(2)))]
        return int(both[0]) if both.size else 1

    if not there.any():
        return None
    step, spread = difference(0), difference(1)
    first = int((table - places * step - taps * spread)[there][0])
    meant = first + places * step + taps * spread
    fits = np.where((meant >= 0) & (meant < size), meant, -1)
    return (first, step, spread) if min(step, spread) > 0 and np.array_equal(fits, table) else None


def joint_name(names: Sequence[str]) -> str:
    """Name the union of some edges' masks, as memory that its maker writes and others read."""
    return "cuda.list.union " + " ".join(names)


def united_before(node: DeltaNode, known: Container[str]) -> int:
    """Return how many of the first inputs an earlier concatenation has united: in dense blocks."""
    names = [spec.name for spec in node.about.inputs]
    return next((n for n in range(len(names) - 1, 1, -1) if joint_name(names[:n]) in known), 0)


def union(node: DeltaNode, buffers: Buffers, context: Context) -> list[Launch]:
    """Return the launches that unite the masks of a concatenation written in place."""
    edge = buffers.output
    height, width = size_of(edge)
    launches = []
    names, done = [e.spec.name for e in buffers.inputs], united_before(node, context.unions)
    inputs = [context.unions[joint_name(names[:done])]] if done else []
    inputs += buffers.inputs[done:]
    context.unions[joint_name(names)] = edge
    for first in range(0, len(inputs), MOST_SOURCES):
        some = inputs[first:first + MOST_SOURCES]
        args = CandidateArgs(
            fresh=context.fresh_flags(), counts=context.counter(
                context.tallies[node.about.name].changed),
            mask=edge.mask.data_ptr(), lanes=edge.mask.shape[0], height=height, width=width,
            period_y=1, period_x=1, sources=len(some))
        for i, source in enumerate(some):
            args.source[i] = MaskSource(mask=source.mask.data_ptr(),
                                        changed=context.changed_counter(source))
        launches.append(Launch(kernel("masks.cu", "unite_masks", torch.float32), args,
                               (blocks(context, edge.mask.numel(), THREADS), 1), THREADS))
    return launches


def blocks(context: Context, items: int, each: int,
           a_processor: int = BLOCKS_A_PROCESSOR) -> int:
    """Return how many blocks share some items: what there is to do, but no more than fit."""
    return max(1, min(-(-items // each), context.launcher.processors * a_processor))
