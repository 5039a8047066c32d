"""Values of one pixel a lane, by ``vector.cu``: their numbers are compared side by side."""

from __future__ import annotations

import math

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda.candidates import blocks
from deltaconvert.backends.cuda.context import Context, channels_of, pixel_step, widest
from deltaconvert.backends.cuda.sums import Parts, changes_of
from deltaconvert.cuda.arguments import VectorArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode

WARP, THREADS, THREADS_OF_PART = 32, 1024, 256
MOST_OF_BLOCK = 16384  # numbers of a lane that one block looks after
MOST_PARTS = 1024  # of a lane's norm
MOST_POOLED = 8192  # numbers that a block keeps, in the memory that it has on any GPU
PACKS_A_THREAD = 4


def suits(node: DeltaNode) -> bool:
    """Whether a node's value is one pixel a lane, and evaluated for all lanes or for none."""
    return node.about.rule != "local" and node.about.output.pixels == 1


def plan(node: DeltaNode) -> list[Scratch]:
    """Return the memory for the parts of the norm."""
    return [Scratch("cuda.scores", 4 * MOST_PARTS * node.about.output.mask_shape[0])]


def bind_given(node: DeltaNode, given: int, buffers: Buffers, context: Context,
               counter: int) -> list[Launch]:
    """Return the launches behind a whole evaluation.

    Args:
        node: with one pixel a lane.
        given: the address of the new value, without gaps.
        buffers, context: of the stream.
        counter: of the lanes that were evaluated.
    """
    edge = buffers.output
    args, wide = _arguments(node, buffers, context, counter, given)
    args.given = given
    lanes, channels = edge.mask.numel(), channels_of(edge)
    defines = {"VEC": wide, "RMS": args.rule.rms, "POOLED": 0}
    if channels <= MOST_OF_BLOCK:
        which = kernel("vector.cu", "settle_vector", edge.value.dtype, **defines)
        return [Launch(which, args, (lanes, 1), THREADS, 4 * THREADS // WARP)]
    args.scores = buffers.scratch["cuda.scores"].data_ptr()
    parts = min(MOST_PARTS, blocks(context, channels // wide, PACKS_A_THREAD * THREADS_OF_PART))
    return [Launch(kernel("vector.cu", entry, edge.value.dtype, **defines), args, (parts, lanes),
                   THREADS_OF_PART, 4 * THREADS_OF_PART // WARP)
            for entry in ("compare_parts", "write_parts")]


def bind_pooled(node: DeltaNode, parts: Parts, buffers: Buffers, context: Context,
                counter: int) -> Launch:
    """Return the launch that makes means of sums; for the other arguments see `bind_given`."""
    edge, lanes = buffers.output, buffers.output.mask.numel()
    args, wide = _arguments(node, buffers, context, counter, parts.address)
    wide = min(wide, 4)  # of float32
    args.parts, args.part_count = parts.address, parts.count
    args.alpha = 1.0 / math.prod(buffers.inputs[0].mask.shape[1:])
    which = kernel("vector.cu", "settle_vector", edge.value.dtype, VEC=wide, RMS=args.rule.rms,
                   POOLED=1)
    kept = channels_of(edge) * edge.value.element_size()
    return Launch(which, args, (lanes, 1), THREADS, 4 * wide * THREADS + kept)


def _arguments(node: DeltaNode, buffers: Buffers, context: Context, counter: int,
               given: int) -> tuple[VectorArgs, int]:
    edge = buffers.output
    args = VectorArgs(
        rule=context.rule(node, buffers), inputs=changes_of(buffers.inputs, context),
        output=edge.value.data_ptr(), count=context.counter(counter), step_out=pixel_step(edge))
    # An activation is part of what was evaluated.
    args.rule.least, args.rule.most = -math.inf, math.inf
    wide = widest(edge.value.element_size(), channels_of(edge), args.step_out,
                  addresses=(args.output, given))
    return args, wide
