"""Depthwise convolutions by `depthwise.cu`: those whose taps are a small window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda.candidates import WARP, blocks, windows
from deltaconvert.backends.cuda.context import (
    Context,
    Lists,
    activation_of,
    channels_of,
    pixel_step,
    size_of,
    widest,
)
from deltaconvert.backends.cuda.functions import NOTHING, applied
from deltaconvert.cuda.arguments import DepthwiseArgs, Window
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.pixels import Operation

THREADS, RESIDENT = 256, 2  # blocks a multiprocessor, with so many threads
RUN = 4  # neighbours
PAIRS = 5  # taps of a row up to which a single pixel's rows are asked for by twos
MOST_PACKS = 15  # that neighbours read together, and one more beyond: what there are registers for


def run_of(taps: int, step: int, spread: int) -> int:
    """Return how many neighbours of a row are computed together; 0, if one is too many."""
    return next((run for run in range(RUN, 0, -1)
                 if (run - 1) * step + (taps - 1) * spread + 1 + taps
                 <= MOST_PACKS + (taps > PAIRS)), 0)


def shared_bytes(run: int, pack_bytes: int) -> int:
    """Count a block's shared memory as `Shared` in the kernel's file lays it out."""
    return run * THREADS * (pack_bytes + 8)


def bind(node: DeltaNode, operation: Operation, buffers: Buffers, context: Context,
         made: Lists) -> Launch | None:
    """Return the launch of a depthwise convolution, or nothing where the kernel does not fit.

    Args:
        node, operation, buffers, context: see `pixels.bind`.
        made: its candidates.
    """
    slot = operation.inputs[0]
    assert isinstance(slot, Slot)
    assert operation.taps is not None
    source, edge = buffers.inputs[slot.index], buffers.output
    footprint = node.about.footprints[slot.index]
    rows, cols = windows(footprint)
    channels = channels_of(edge)
    args = DepthwiseArgs(
        rule=context.rule(node, buffers), input=source.value.data_ptr(),
        weight=operation.taps.data_ptr(), output=edge.value.data_ptr(), list=made.pixels,
        count=context.counter(made.counts), step_in=pixel_step(source),
        step_out=pixel_step(edge), taps_y=footprint.taps[0],
        pixels=math.prod(edge.mask.shape))
    if operation.bias is not None:
        args.bias = operation.bias.data_ptr()
    if operation.residual is not None:
        added = buffers.inputs[operation.residual.index]
        args.residual, args.step_residual = added.value.data_ptr(), pixel_step(added)
    (args.height_in, args.width_in), (args.height, args.width) = size_of(source), size_of(edge)
    wide = widest(edge.value.element_size(), channels, args.step_in, args.step_out,
                  args.step_residual or 0,
                  addresses=(args.input, args.output, args.residual or 0))
    args.packs = channels // wide
    run = run_of(footprint.taps[1], cols[1], cols[2]) if rows and cols else 0
    if not (rows and cols and run) or args.packs > THREADS:
        return None
    args.window = Window(*(n for pair in zip(rows, cols, strict=True) for n in pair))
    args.groups = THREADS // args.packs
    threads = -(-args.groups * args.packs // WARP) * WARP
    which = kernel("depthwise.cu", "depthwise", edge.value.dtype, OUT_VEC=wide, RUN=run,
                   TAPS=footprint.taps[1], STEP=cols[1], SPREAD=cols[2], RMS=args.rule.rms,
                   **(applied(activation_of(node)) or NOTHING).defines)
    grid = blocks(context, args.pixels, args.groups,
                  RESIDENT * THREADS // threads)
    return Launch(which, args, (grid, 1), threads,
                  shared_bytes(run, wide * edge.value.element_size()))
