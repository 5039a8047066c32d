"""Group norm and instance norm, by ``norm.cu``: moments in parts, then all pixels in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import sums
from deltaconvert.backends.cuda.candidates import blocks
from deltaconvert.backends.cuda.context import Context, channels_of, pixel_step, widest
from deltaconvert.backends.cuda.filters import numbers_of
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit
from deltaconvert.cuda.arguments import NormArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot

WARP, THREADS, THREADS_OF_GROUP = 32, 256, 1024
MOST_PACKS = 4  # of a pixel that a lane of a warp keeps


@dataclass
class Norm:
    """What a node is to ``norm.cu``; made once a program.

    Args:
        weight, bias: float32 ``[channels]``, or nothing.
        group: channels that share mean and spread.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    group: int
    eps: float


def suits(node: DeltaNode) -> bool:
    """Whether a node is a norm over groups of channels of a map, with constants for weights."""
    about = node.about
    if about.operator is None or about.operator.name not in ("group_norm", "instance_norm"):
        return False
    if about.args[:1] != (Slot(0),) or any(isinstance(a, Slot) for a in about.args[1:]):
        return False
    source, output = about.inputs[0], about.output
    return source.is_map and source.shape == output.shape and source.dtype == output.dtype


def prepare(node: DeltaNode, program: Program) -> Norm:
    """Return the constants."""
    if not suits(node):
        raise Unfit
    about = node.about
    assert about.output.shape is not None
    weight, bias = (numbers_of(_argument(about.args, i)) for i in (1, 2))
    channels = about.output.shape[1]
    return Norm(weight, bias, channels // about.params.get("groups", channels),
                about.params["eps"])


def _argument(args: tuple[Any, ...], index: int) -> Any:
    return args[index] if index < len(args) else None


def plan(node: DeltaNode, norm: Norm, program: Program) -> tuple[list[Scratch], int]:
    """Return the memory for the moments, and for what a channel is multiplied by."""
    shape = node.about.output.shape
    assert shape is not None
    return [sums.plan(node.about.inputs[0], moments=True),
            Scratch("cuda.table", 4 * 3 * shape[0] * shape[1])], 1


def bind(node: DeltaNode, norm: Norm, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts the pixels that were evaluated."""
    counter = context.count()
    (source,), edge = buffers.inputs, buffers.output
    summed, parts = sums.bind(source, buffers.scratch["cuda.parts"].data_ptr(), context,
                              norm.group)
    args = NormArgs(
        rule=context.rule(node, buffers), inputs=sums.changes_of(buffers.inputs, context),
        input=source.value.data_ptr(), parts=parts.address,
        table=buffers.scratch["cuda.table"].data_ptr(), output=edge.value.data_ptr(),
        count=context.counter(counter), eps=norm.eps, part_count=parts.count,
        together=parts.together, group=norm.group, step_in=pixel_step(source),
        step_out=pixel_step(edge))
    for name in ("weight", "bias"):
        if getattr(norm, name) is not None:
            setattr(args, name, getattr(norm, name).data_ptr())
    channels, lanes, dtype = channels_of(edge), edge.spec.lanes, edge.value.dtype
    wide = widest(edge.value.element_size(), channels, args.step_in, args.step_out,
                  addresses=(args.input, args.output))
    packs = channels // wide
    share = min(WARP, 1 << (packs - 1).bit_length())
    each = -(-packs // share)
    defines = {"VEC": wide, "LANES": share, "PACKS": each if each <= MOST_PACKS else 0,
               "RMS": args.rule.rms}
    moments = Launch(kernel("norm.cu", "finish_moments", dtype, **defines), args,
                     (channels // norm.group, lanes),
                     _threads(parts.count * norm.group // parts.together),
                     8 * THREADS_OF_GROUP // WARP)
    grid = blocks(context, edge.spec.pixels, THREADS // share)
    normalized = Launch(kernel("norm.cu", "normalize_pixels", dtype, **defines), args,
                        (max(1, grid // lanes), lanes), THREADS)
    return Bound(CudaStep(context.launcher, [summed, moments, normalized], buffers), [counter],
                 scheduled=False)


def _threads(entries: int) -> int:
    """Return how many threads of a block read so many entries."""
    return min(THREADS_OF_GROUP, -(-entries // WARP) * WARP)
