"""Pooling to one pixel: all pixels summed in parts, and compared by one block a lane.

As `whole`, it runs when anything has changed; PyTorch's own means of channels-last maps take
several times as long.
"""

from __future__ import annotations

import math

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import sums, vectors
from deltaconvert.backends.cuda.context import Context
from deltaconvert.cuda.launcher import Launch
from deltaconvert.nodes import DeltaNode, Slot


def suits(node: DeltaNode) -> bool:
    """Whether a node is the mean of each channel of a map, over all of its pixels."""
    about = node.about
    if about.operator is None or len(about.inputs) != 1 or about.args[:1] != (Slot(0),):
        return False
    source, output = about.inputs[0], about.output
    if not source.is_map or source.shape is None or output.shape is None:
        return False
    if source.dtype != output.dtype or about.params.get("activation"):
        return False
    if source.shape[1] > vectors.MOST_POOLED:
        return False
    if about.operator.name == "mean":
        over = {d % len(source.shape) for d in about.params["dim"]} == {2, 3}
    else:
        over = about.operator.name == "adaptive_avg_pool2d"
    return over and math.prod(output.shape) == math.prod(source.shape[:2])


def plan(node: DeltaNode) -> list[Scratch]:
    """Return the memory for the sums."""
    return [sums.plan(node.about.inputs[0], moments=False)]


def bind(node: DeltaNode, buffers: Buffers, context: Context, counter: int) -> list[Launch]:
    """Return the launches; ``counter`` counts the lanes that were evaluated."""
    launch, parts = sums.bind(buffers.inputs[0], buffers.scratch["cuda.parts"].data_ptr(), context)
    return [launch, vectors.bind_pooled(node, parts, buffers, context, counter)]
