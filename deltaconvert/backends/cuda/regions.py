"""Means of few regions of many pixels, by ``regions.cu``: adaptive pooling to a few pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda.context import (
    Context,
    activation_of,
    channels_of,
    pixel_step,
    size_of,
    widest,
)
from deltaconvert.backends.cuda.functions import NOTHING, applied
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit, at_candidates
from deltaconvert.backends.divisors import divisors_of
from deltaconvert.cuda.arguments import RegionArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot

WARP, THREADS = 32, 256
MOST_REGIONS, FEWEST_TAPS, MOST_CHANNELS = 256, 16, 8192


@dataclass
class Regions:
    """What a node is to ``regions.cu``; made once a program.

    Args:
        divisors: float32, ``[height_out]`` and ``[width_out]``, whose product divides a sum.
    """

    divisors: Tensor


def suits(node: DeltaNode) -> bool:
    """Whether a local node is the mean of few regions of many pixels."""
    about = node.about
    if about.operator is None or about.operator.name not in ("adaptive_avg_pool2d", "avg_pool2d"):
        return False
    if about.args[:1] != (Slot(0),) or about.output.shape is None or not at_candidates(node):
        return False
    taps = math.prod(about.footprints[0].taps)
    return (about.output.pixels <= MOST_REGIONS and taps >= FEWEST_TAPS
            and about.output.shape[1] <= MOST_CHANNELS
            and about.output.pixels * taps < 2 * about.inputs[0].pixels + taps)


def prepare(node: DeltaNode, program: Program) -> Regions:
    """Return the constants."""
    if not suits(node):
        raise Unfit
    rows, cols = divisors_of(node.about, node.about.footprints[0])
    divisors = torch.from_numpy(np.concatenate([rows, cols]).astype(np.float32))
    return Regions(divisors.to(program.device))


def plan(node: DeltaNode, data: Regions, program: Program) -> tuple[list[Scratch], int]:
    """Return nothing: regions are found and averaged at once."""
    return [], 1


def bind(node: DeltaNode, regions: Regions, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts the regions that were evaluated."""
    counter = context.count()
    (source,), edge = buffers.inputs, buffers.output
    footprint = node.about.footprints[0]
    rows, cols = program.tables.of(footprint)
    height_in, width_in = size_of(source)
    args = RegionArgs(
        rule=context.rule(node, buffers), mask=source.mask.data_ptr(),
        changed=context.changed_counter(source), input=source.value.data_ptr(), rows=rows,
        cols=cols, divisors=regions.divisors.data_ptr(), output=edge.value.data_ptr(),
        count=context.counter(counter), height_in=height_in, width_in=width_in,
        height=size_of(edge)[0], taps_y=footprint.taps[0], taps_x=footprint.taps[1],
        step_in=pixel_step(source), step_out=pixel_step(edge))
    channels, size = channels_of(edge), edge.value.element_size()
    wide = widest(size, channels, args.step_in, args.step_out, addresses=(args.input, args.output))
    args.width = min(WARP, channels // wide)
    which = kernel("regions.cu", "average_regions", edge.value.dtype, VEC=wide, RMS=args.rule.rms,
                   **(applied(activation_of(node)) or NOTHING).defines)
    shared = 8 * THREADS // WARP + 4 * wide * THREADS + size * channels
    launch = Launch(which, args, (edge.spec.pixels, edge.spec.lanes), THREADS, shared)
    return Bound(CudaStep(context.launcher, [launch], buffers), [counter])
