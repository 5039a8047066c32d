"""Convolutions of whole maps by the library, for the dense way of a frame (`dense`).

Where it can, it writes where the value is, and adds bias and activates itself. What is left for
another kernel, reads and writes the map once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda.context import (
    Context,
    activation_of,
    channels_of,
    pixel_step,
    widest,
)
from deltaconvert.backends.cuda.filters import argument
from deltaconvert.backends.cuda.functions import NOTHING, applied
from deltaconvert.cuda.arguments import FinishArgs
from deltaconvert.cuda.launcher import Launch, launch_all
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode, Slot

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.convolution import Folded

THREADS, PIXELS_TOGETHER = 256, 4  # as in finish.cu
ALIGNMENT = 64  # bytes, the most that cuDNN tells apart
HALVES = torch.float16, torch.bfloat16


class LibraryStep:
    """A convolution of whole maps by the library, and a kernel for what that leaves."""

    def __init__(self, node: DeltaNode, folded: Folded, buffers: Buffers,
                 context: Context) -> None:
        """Settle how; for the arguments see `convolution.bind`."""
        self.node, self.buffers, self.launcher = node, buffers, context.launcher
        self.weight, self.bias = folded.whole, argument(node, 2)
        self.product = _is_product(node, buffers)
        self.in_place = self.product or _writes_in_place(node, buffers, context)
        fused = [folded.bias, argument(node, 3), node.about.params.get("activation")]
        done = self.product or (self.in_place and fused == [None] * 3)
        self.launches = [] if done else [_finish(node, folded.bias, buffers, context)]

    def convolve(self, into: Tensor | None = None) -> Tensor:
        """Return the convolution of all pixels: in the value's own memory, or another.

        Of a product, bias and activation are part.
        """
        about, cudnn = self.node.about, torch.backends.cudnn
        x = self.buffers.inputs[argument(self.node, 0).index].value
        into = self.buffers.output.value if into is None else into
        params = about.params
        if self.product:
            multiply = (torch.ops.aten._addmm_activation if params.get("activation")
                        else torch.ops.aten.addmm)
            multiply.out(self.bias, rows_of(x), self.weight.flatten(1).t(), out=rows_of(into))
            return into
        if self.in_place:
            torch.ops.aten.cudnn_convolution.out(
                x, self.weight, params["padding"], params["stride"], params["dilation"],
                params["groups"], cudnn.benchmark,
                cudnn.deterministic or torch.are_deterministic_algorithms_enabled(),
                cudnn.allow_tf32, out=_channels_last(into))
            return into
        given: Tensor = about.function(x, self.weight, **(params | {"activation": None}))
        return given.contiguous(memory_format=torch.channels_last)

    def prepare(self) -> None:
        """Let the library settle how, which it cannot in a graph; nothing is written."""
        self.convolve(torch.empty_like(self.buffers.output.value))

    def __call__(self) -> None:
        """Run once."""
        given = self.convolve()  # of memory that is the graph's own, or the value's
        for launch in self.launches:
            assert isinstance(launch.args, FinishArgs)
            launch.args.given = given.data_ptr()
        launch_all(self.launcher, self.launches)


def rows_of(value: Tensor) -> Tensor:
    """View a map without gaps as ``[pixels, channels]``."""
    return value.permute(0, 2, 3, 1).reshape(-1, value.shape[1])


def _channels_last(value: Tensor) -> Tensor:
    """View a map without gaps by the strides of channels_last, which cuDNN takes the layout from.

    Of one channel, or one pixel, others are as good, but for cuDNN: a kernel of 1x1 and 16 bits
    beside an output of one channel that is strided like NCHW made wrong numbers.
    """
    _, c, h, w = value.shape
    return value.as_strided(value.shape, (h * w * c, 1, w * c, c))


def _lies_whole(buffers: Buffers) -> bool:
    """Whether the value lies as the library's own results do: without gaps, and aligned.

    In a concatenation it may not; and for another alignment cuDNN may search anew, which it cannot
    in a graph.
    """
    edge = buffers.output
    return pixel_step(edge) == channels_of(edge) and edge.value.data_ptr() % ALIGNMENT == 0


def _writes_in_place(node: DeltaNode, buffers: Buffers, context: Context) -> bool:
    """Whether cuDNN can write where the value is."""
    about, value = node.about, buffers.output.value
    assert about.operator is not None
    if value.dtype == torch.bfloat16 and context.launcher.capability >= (8, 0):
        value = value.view(torch.float16)  # `is_acceptable` has not heard of the other
    return (about.operator.name == "conv2d" and _lies_whole(buffers)
            and torch.backends.cudnn.is_acceptable(value)
            and "out" in torch.ops.aten.cudnn_convolution.overloads())


def _is_product(node: DeltaNode, buffers: Buffers) -> bool:
    """Whether all there is to do is one product of matrices, bias and ReLU in it.

    Of 16-bit numbers: whether float32 may be multiplied as tf32 is another setting.
    """
    about, weight, (source, *others) = node.about, argument(node, 1), buffers.inputs
    assert about.operator is not None
    return (about.operator.name == "conv2d" and not others and _lies_whole(buffers)
            and weight.shape[2:] == (1, 1) and about.footprints[0].is_identity
            and about.params["groups"] == 1 and argument(node, 2) is not None
            and about.params.get("activation") in (None, ("relu",))
            and pixel_step(source) == channels_of(source)
            and source.value.is_cuda and weight.dtype in HALVES)


def _finish(node: DeltaNode, bias: Tensor | None, buffers: Buffers, context: Context) -> Launch:
    """Return the launch that adds and activates, once it knows where the convolution is."""
    edge, residual = buffers.output, argument(node, 3)
    channels, size = channels_of(edge), edge.value.element_size()
    args = FinishArgs(
        rule=context.rule(node, buffers), bias=None if bias is None else bias.data_ptr(),
        output=edge.value.data_ptr(), step_out=pixel_step(edge), pixels=edge.mask.numel())
    if isinstance(residual, Slot):
        added = buffers.inputs[residual.index]
        args.residual, args.step_residual = added.value.data_ptr(), pixel_step(added)
    wide = widest(size, channels, args.step_out, args.step_residual or 0,
                  addresses=(args.output, args.residual or 0))
    args.packs = channels // wide
    rows = PIXELS_TOGETHER * (THREADS // min(args.packs, THREADS))
    which = kernel("finish.cu", "finish_all", edge.value.dtype, VEC=wide,
                   **(applied(activation_of(node)) or NOTHING).defines)
    return Launch(which, args, (-(-args.pixels // rows), -(-args.packs // THREADS)), THREADS)
