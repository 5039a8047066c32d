"""Swin's attention, by ``windows.cu``: of the windows in which a pixel changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda import pixels
from deltaconvert.backends.cuda.candidates import blocks
from deltaconvert.backends.cuda.context import (
    Context,
    Lists,
    channels_of,
    pixel_step,
    size_of,
    widest,
)
from deltaconvert.backends.cuda.filters import numbers_of
from deltaconvert.backends.cuda.kinds import Bound, CudaStep, Program, Unfit
from deltaconvert.backends.cuda.sums import changes_of
from deltaconvert.cuda.arguments import WindowArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot
from deltaconvert.operators.window_attention import LARGEST_SCALE, without_keys

HEAD, MOST_TOKENS = 32, 64  # as in windows.cu
THREADS, THREADS_OF_LIST, WARP = 128, 256, 32
BLOCKS_A_PROCESSOR = 12


@dataclass
class Windows:
    """What a node is to ``windows.cu``; made once a program.

    Args:
        bias: ``[3 C]`` in the dtype of the map, or nothing.
        position: float32 ``[heads, T, T]``.
        scales: float32 ``[heads]``.
        size: rows and columns of a window.
        shift: by which windows are shifted up and left.
        count: windows of a lane, down and across.
        cosines: queries and keys are brought to length 1.
    """

    bias: Tensor | None
    position: Tensor
    scales: Tensor
    size: tuple[int, int]
    shift: tuple[int, int]
    count: tuple[int, int]
    cosines: bool


def suits(node: DeltaNode) -> bool:
    """Whether a node is attention within windows as the kernel has it."""
    about = node.about
    if about.operator is None or about.operator.name != "window_attention":
        return False
    if about.args[:1] != (Slot(0),) or any(isinstance(a, Slot) for a in about.args[1:]):
        return False
    rows, cols = about.params["window"]
    shape = about.output.shape
    return (about.inputs[0].is_map and about.inputs[0].dtype == about.output.dtype
            and shape is not None and shape[1] == HEAD * about.params["heads"]
            and rows * cols <= MOST_TOKENS  # and no more than once around the map
            and all(0 <= s <= n for s, n in zip(about.params["shift"], shape[2:], strict=True)))


def prepare(node: DeltaNode, program: Program) -> Windows:
    """Return the constants."""
    if not suits(node):
        raise Unfit
    about = node.about
    _, bias, position, scale = about.args
    assert about.output.shape is not None
    heads, size, tokens = about.params["heads"], about.params["window"], position.shape[-1]
    height, width = about.output.shape[2:]
    count = -(-height // size[0]), -(-width // size[1])
    shift = [s if n > 1 else 0 for s, n in zip(about.params["shift"], count, strict=True)]
    if bias is not None:
        bias = (bias if scale is None else without_keys(bias)).detach()
        bias = bias.to(about.output.dtype, copy=True).contiguous()
    if scale is None:
        scales = torch.full((heads,), HEAD ** -0.5, device=program.device)
    else:
        scales = scale.detach().float().clamp(max=LARGEST_SCALE).exp().reshape(heads).contiguous()
    made = numbers_of(position.expand(1, heads, tokens, tokens))
    assert made is not None
    return Windows(bias, made, scales, size, (shift[0], shift[1]), count, scale is not None)


def plan(node: DeltaNode, windows: Windows, program: Program) -> tuple[list[Scratch], int]:
    """Return the memory for the new values, and for the lists of pixels and windows."""
    spec = node.about.output
    assert spec.shape is not None
    assert spec.dtype is not None
    listed = spec.lanes * (spec.pixels + windows.count[0] * windows.count[1])
    return [Scratch("cuda.given", spec.dtype.itemsize * torch.Size(spec.shape).numel()),
            Scratch("cuda.windows", 4 * listed)], 2


def bind(node: DeltaNode, windows: Windows, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, which counts the pixels that are evaluated, and their windows."""
    counter = context.count(2)
    (source,), edge = buffers.inputs, buffers.output
    height, width = size_of(edge)
    lanes, dtype, heads = edge.spec.lanes, edge.value.dtype, node.about.params["heads"]
    given, listed = buffers.scratch["cuda.given"], buffers.scratch["cuda.windows"].data_ptr()
    args = WindowArgs(
        rule=context.rule(node, buffers), inputs=changes_of(buffers.inputs, context),
        mask=source.mask.data_ptr(), input=source.value.data_ptr(),
        bias=None if windows.bias is None else windows.bias.data_ptr(),
        position=windows.position.data_ptr(), scales=windows.scales.data_ptr(),
        given=given.data_ptr(), list=listed, windows=listed + 4 * lanes * edge.spec.pixels,
        counts=context.counter(counter), lanes=lanes, height=height, width=width,
        step=pixel_step(source), channels=channels_of(edge), heads=heads, rows=windows.size[0],
        cols=windows.size[1], down=windows.count[0], across=windows.count[1],
        shift_y=windows.shift[0], shift_x=windows.shift[1], cosines=windows.cosines)
    tensor = dtype == torch.float16 or (
        dtype == torch.bfloat16 and context.launcher.capability >= (8, 0))
    size = edge.value.element_size()
    wide = widest(size, args.step, args.channels, addresses=(args.input, args.bias or 0))
    defines = {"TENSOR": int(tensor), "VEC": wide}
    total = lanes * windows.count[0] * windows.count[1]
    found = Launch(kernel("windows.cu", "find_windows", dtype, **defines), args,
                   (blocks(context, total, THREADS_OF_LIST // WARP), 1), THREADS_OF_LIST)
    attended = Launch(kernel("windows.cu", "attend_windows", dtype, **defines), args,
                      (blocks(context, total * heads, 1, BLOCKS_A_PROCESSOR), 1), THREADS,
                      MOST_TOKENS * (3 * (HEAD * size + 16) + 4 + 8))
    compared = pixels.compare_given(node, given.data_ptr(), buffers, context,
                                    Lists(listed, counter, 1))
    return Bound(CudaStep(context.launcher, [found, attended, compared], buffers), [counter])
