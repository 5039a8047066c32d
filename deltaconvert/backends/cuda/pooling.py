"""Pooling to one pixel: all pixels summed in parts, and compared by one block a lane.

As `whole`, it runs when anything has changed; PyTorch's own means of channels-last maps take
several times as long.
"""

from __future__ import annotations

import math

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import sums, vectors
from deltaconvert.backends.cuda.context import Context
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit
from deltaconvert.nodes import DeltaNode, Slot


def suits(node: DeltaNode) -> bool:
    """Whether a node is the mean of each channel of a map, over all of its pixels."""
    about = node.about
    if about.operator is None or len(about.inputs) != 1 or about.args[:1] != (Slot(0),):
        return False
    if about.rule == "local":  # of a map of one pixel
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


def prepare(node: DeltaNode, program: Program) -> None:
    """Return nothing: it has no constants."""
    if not suits(node):
        raise Unfit


def plan(node: DeltaNode, data: None, program: Program) -> tuple[list[Scratch], int]:
    """Return the memory for the sums."""
    return [sums.plan(node.about.inputs[0], moments=False)], 1


def bind(node: DeltaNode, data: None, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts the lanes that were evaluated."""
    counter = context.count()
    summed, parts = sums.bind(buffers.inputs[0], buffers.scratch["cuda.parts"].data_ptr(), context)
    pooled = vectors.bind_pooled(node, parts, buffers, context, counter)
    return Bound(CudaStep(context.launcher, [summed, pooled], buffers), [counter], scheduled=False)
