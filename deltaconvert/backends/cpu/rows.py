"""Which output pixels a node re-evaluates: the lists, the memory they take, and their sharing.

A list holds flat pixel indices over all lanes, in order. Readers of the same masks through
equal footprints share it: its memory by the scratch's name, its contents by the versions of
the masks it was made of.
"""

from __future__ import annotations

import hashlib

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.engine import Engine
from deltaconvert.backends.cpu.frame import LEDGER, PROGRESS, Head, Input, Parts
from deltaconvert.backends.cpu.maps import flat, ints
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge

# Calling a helper takes some 2 us where it is awake; below, one worker is done before that pays.
_SHARED_WORK_NS = 15_000


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


def head_of(node: DeltaNode, buffers: Buffers, engine: Engine, row_ns: float, most: int,
            grain: int = 1) -> Head:
    """Return what the frame needs of a local node, to begin and end its step.

    Args:
        node: the node.
        buffers: its edges and memory.
        engine: of the stream.
        row_ns: about how long a candidate takes, to tell when sharing pays.
        most: rows of a part.
        grain: which these are a multiple of.
    """
    lanes, height, width = node.about.output.mask_shape
    total = lanes * height * width
    key = list_name(node)
    parts = Parts(ints(buffers.scratch[key], total),
                  engine.shared(key, lambda: np.full(1 + len(buffers.inputs), -1, np.int64)),
                  np.zeros(PROGRESS, np.int64))
    footprints = node.about.footprints
    inputs = [engine.keep(_input(edge, footprint)).address
              for edge, footprint in zip(buffers.inputs, footprints, strict=True)]
    return Head(
        np.array(inputs, np.int64), len(inputs) == 1 and footprints[0].is_identity,
        height * width, buffers.state.fresh, parts, flat(buffers.scratch["cpu.marks"])[:total],
        flat(buffers.output.mask), buffers.output.tally,
        np.zeros((engine.workers.threads, lanes), np.int64),
        int(_SHARED_WORK_NS / row_ns) + 1, grain, most, np.zeros(LEDGER, np.int64))


def _input(edge: Edge, footprint: Footprint) -> Input:
    rows, cols = (np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
    return Input(flat(edge.mask), edge.tally, rows, cols, *footprint.size_in)
