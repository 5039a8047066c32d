"""Which output pixels a node re-evaluates: masks turned into lists of pixels, once each.

A list holds flat pixel indices over all lanes, in order. Readers of the same masks through
equal footprints share it: its memory by the scratch's name, its contents by the edge's cache.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import flat, ints
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode


class Candidates(NamedTuple):
    """Output pixels to re-evaluate.

    Args:
        pixels: int32, flat indices ``(lane * height + y) * width + x``, ascending.
        counts: how many there are in each lane.
        total: how many in all.
    """

    pixels: np.ndarray
    counts: list[int]
    total: int


def list_name(node: DeltaNode) -> str:
    """Name the list: equal for nodes with the same candidates."""
    about = node.about
    digest = hashlib.sha1(repr([spec.name for spec in about.inputs]).encode())
    for footprint in about.footprints:
        digest.update(repr(footprint.key()).encode())
    return f"cpu.candidates.{digest.hexdigest()}"


def list_scratch(node: DeltaNode) -> list[Scratch]:
    """Return the memory of a node's list, and of the marks from which it is made."""
    pixels = int(np.prod(node.about.output.mask_shape))
    return [Scratch(list_name(node), 4 * pixels), Scratch("cpu.marks", pixels + 8)]


class CandidateFinder:
    """Derives a local node's candidates from its inputs' masks."""

    def __init__(self, node: DeltaNode, buffers: Buffers) -> None:
        """Resolve tables and buffers, so that a frame needs none of it."""
        self.inputs, self.state = buffers.inputs, buffers.state
        self.key = list_name(node)
        self.lanes, height, width = node.about.output.mask_shape
        self.plane = height * width
        total = self.lanes * self.plane
        self.list = ints(buffers.scratch[self.key], total)
        self.marks = flat(buffers.scratch["cpu.marks"])[:total]
        self.masks = [flat(edge.mask) for edge in self.inputs]
        self.tables = [_tables(f) for f in node.about.footprints]
        self.alone = len(self.inputs) == 1 and node.about.footprints[0].is_identity

    def find(self) -> Candidates | None:
        """Return the candidates of this frame, or nothing where no input changed."""
        if not any(self.state.fresh) and not any(edge.changed for edge in self.inputs):
            return None
        cache = self.inputs[0].cache
        found: Candidates | None = cache.get(self.key)
        if found is None:
            found = cache[self.key] = self._derive()
        return found if found.total else None

    def _derive(self) -> Candidates:
        marks = self.masks[0] if self.alone else self._mark()
        if self.alone and any(self.state.fresh):
            marks = self.marks
            marks[:] = self.masks[0]
        for lane, fresh in enumerate(self.state.fresh):
            if fresh:
                marks[lane * self.plane:(lane + 1) * self.plane] = 1
        counts = np.zeros(self.lanes, np.int64)
        total = collect(marks, self.plane, self.list, counts)
        return Candidates(self.list[:total], counts.tolist(), total)

    def _mark(self) -> np.ndarray:
        self.marks.fill(0)
        for edge, mask, tables in zip(self.inputs, self.masks, self.tables, strict=True):
            if edge.changed:
                mark(mask, self.lanes, *tables, self.marks)
        return self.marks


def _tables(footprint: Footprint) -> tuple[np.ndarray, np.ndarray, int, int]:
    rows, cols = (np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
    return rows, cols, *footprint.size_in


@loop
def mark(mask, lanes, rows, cols, height, width, marks):
    """Set the marks of the output pixels one of whose taps is set in the mask."""
    height_out, width_out = rows.shape[0], cols.shape[0]
    line = np.empty(width, np.uint8)
    full = np.empty(height, np.uint8)
    for lane in range(lanes):
        for y in range(height):
            row = mask[(lane * height + y) * width:(lane * height + y + 1) * width]
            found = np.uint8(0)
            for x in range(width):
                found |= row[x]
            full[y] = found
        for y in range(height_out):
            if not unite_rows(mask, lane * height, rows[y], full, width, line):
                continue
            start = (lane * height_out + y) * width_out
            out = marks[start:start + width_out]
            for tap in range(cols.shape[1]):
                for x in range(width_out):
                    source = cols[x, tap]
                    if source >= 0:
                        out[x] |= line[source]


@loop
def unite_rows(mask, first, taps, full, width, line):
    """Write the union of the tapped mask rows to ``line``; return whether it holds anything."""
    any_row = False
    for tap in range(taps.shape[0]):
        y = taps[tap]
        if y < 0 or full[y] == 0:
            continue
        row = mask[(first + y) * width:(first + y + 1) * width]
        if any_row:
            for x in range(width):
                line[x] |= row[x]
        else:
            for x in range(width):
                line[x] = row[x]
        any_row = True
    return any_row


@loop
def collect(marks, plane, pixels, counts):
    """List the set marks; count them a lane; return how many there are."""
    total = 0
    for lane in range(counts.shape[0]):
        before = total
        start = lane * plane
        lane_marks = marks[start:start + plane]
        words = lane_marks[:plane // 8 * 8].view(np.uint64)
        for word in range(words.shape[0]):
            if words[word] != 0:  # most of a quiet scene is skipped eight at a time
                for at in range(word * 8, word * 8 + 8):
                    pixels[total] = start + at
                    total += lane_marks[at] != 0
        for at in range(plane // 8 * 8, plane):
            if lane_marks[at] != 0:
                pixels[total] = start + at
                total += 1
        counts[lane] = total - before
    return total
