"""Which output pixels a node re-evaluates: the lists, the memory they take, and their sharing.

A list holds flat pixel indices over all lanes, in order. Readers of the same masks through
equal footprints share it: its memory by the scratch's name, its contents by the versions of
the masks it was made of.
"""

from __future__ import annotations

import hashlib

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.frames.candidates import Input
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import LEDGER, Head
from deltaconvert.backends.cpu.frames.parts import Parts, progress_of
from deltaconvert.backends.cpu.maps.flat import flat, ints
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, EdgeSpec, Slot
from deltaconvert.state import Edge

# Calling a helper takes some 2 us where it is awake; below, one worker is done before that pays.
_SHARED_WORK_NS = 3_000


def list_name(node: DeltaNode) -> str:
    """Name the list: equal for nodes with the same candidates."""
    digest = hashlib.sha1(repr([spec.name for spec in node.about.inputs]).encode())
    for footprint in footprints_of(node):
        digest.update(repr(footprint.key()).encode())
    return f"cpu.candidates.{digest.hexdigest()}"


def footprints_of(node: DeltaNode) -> tuple[Footprint, ...]:
    """Return a local node's footprints; those of a node that reads whole lanes are everything."""
    return node.about.footprints or tuple(_everything(spec, node.about.output)
                                          for spec in node.about.inputs)


def _everything(spec: EdgeSpec, output: EdgeSpec) -> Footprint:
    (height, width), made = ((*some.mask_shape, 1, 1)[1:3] for some in (spec, output))
    rows, cols = (np.tile(np.arange(size, dtype=np.int32), (count, 1))
                  for size, count in zip((height, width), made, strict=True))
    return Footprint(rows, cols, (height, width))


def whole_refusal(node: DeltaNode) -> str | None:
    """Return why a global node is not one pixel a lane, of a lane's numbers alone."""
    about = node.about
    if len(about.inputs) != 1 or not isinstance(about.args[0], Slot):
        return "it is of something else than one value"
    for spec in (*about.inputs, about.output):
        if not spec.has_lanes or len(spec.shape or ()) not in (2, 4):
            return f"{spec.name} is neither a map nor a vector a lane (its shape is {spec.shape})"
    return None if about.output.pixels == 1 else f"{about.output.name} is a map"


def list_scratch(node: DeltaNode) -> list[Scratch]:
    """Return the memory of a node's list, and of the marks from which it is made."""
    pixels = int(np.prod(node.about.output.mask_shape))
    return [Scratch(list_name(node), 4 * pixels), Scratch("cpu.marks", pixels + 8)]


def head_of(node: DeltaNode, buffers: Buffers, engine: Engine, row_ns: float, most: int,
            grain: int = 1, fixed_ns: float = 0.0) -> Head:
    """Return what the frame needs of a node, to begin and end its step.

    Args:
        node: local, or one whose every lane is one pixel (see `whole_refusal`).
        buffers: its edges and memory.
        engine: of the stream.
        row_ns: about how long a candidate takes, to tell when sharing pays.
        most: rows of a part.
        grain: which these are a multiple of.
        fixed_ns: about how long the step takes, however few candidates there are.
    """
    lanes, plane = node.about.output.mask_shape[0], node.about.output.pixels
    total = lanes * plane
    key = list_name(node)
    parts = Parts(ints(buffers.scratch[key], total),
                  engine.shared(key, lambda: np.full(1 + len(buffers.inputs), -1, np.int64)),
                  progress_of(engine.workers.threads))
    footprints = footprints_of(node)
    inputs = [engine.keep(_input(edge, footprint)).address
              for edge, footprint in zip(buffers.inputs, footprints, strict=True)]
    return Head(
        np.array(inputs, np.int64), all(footprint.is_identity for footprint in footprints),
        plane, buffers.state.fresh, parts, flat(buffers.scratch["cpu.marks"])[:total],
        flat(buffers.output.mask), buffers.output.tally,
        np.zeros((engine.workers.threads, lanes), np.int64),
        max(int((_SHARED_WORK_NS - fixed_ns) / row_ns) + 1, 1), grain, most,
        np.zeros(LEDGER, np.int64))


def _input(edge: Edge, footprint: Footprint) -> Input:
    rows, cols = (np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
    return Input(flat(edge.mask), edge.tally, rows, cols, *footprint.size_in, *_windows(cols))


def _windows(cols: np.ndarray) -> tuple[np.ndarray, int]:
    """Return `Input.windows` and its stride; 0 where the columns are no windows."""
    windows = np.zeros((cols.shape[1], 3), np.int64)
    strides: set[int] = set()
    for tap, column in enumerate(cols.T):
        there = np.flatnonzero(column >= 0)
        if len(there):
            windows[tap] = there[0], there[-1] + 1, column[there[0]]
            strides.update(np.diff(column[there[0]:there[-1] + 1]).tolist() or [1])
    if len(strides) != 1 or min(strides) < 1:
        return windows, 0
    return windows, int(strides.pop())
