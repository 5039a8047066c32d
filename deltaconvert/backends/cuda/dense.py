"""The dense way of a frame: all pixels of all nodes are evaluated and written, none compared.

Which of the two ways a frame takes is decided on the device by what there was to do in the last
frame; `Runner` holds a graph of each. In the dense one everything counts as changed, as in a first
frame. So any kernel may take part as it is; those that lists of candidates would keep from it have
a form without (``ALL`` in common.cuh), and convolutions are the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Step
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

# Of kernels: what nobody needs where everything changes, and what has a form for that.
NEEDLESS = "find_candidates", "unite_masks"
OF_LISTS = "compute_pixels", "depthwise"
# The dense way is taken from this share of the sparse way's work on, and more where nodes are
# small: see docs/performance-cuda.md; the work is counted in bytes that are moved, and in
# operations that take as long.
BREAK_EVEN, LAST = 0.4, 0.8
OPERATIONS_A_BYTE = 100
BYTES_A_NODE = 4e6
THREADS, PIXELS_TOGETHER = 256, 4  # as in finish.cu


class DenseStep:
    """A convolution of whole maps by the library, and a kernel for what is fused behind it."""

    def __init__(self, node: DeltaNode, folded: Folded, buffers: Buffers,
                 context: Context) -> None:
        """Settle the launch; for the arguments see `convolution.bind`."""
        self.node, self.buffers, self.launcher = node, buffers, context.launcher
        self.weight = folded.whole
        self.in_place = _writes_in_place(node, buffers)
        self.launches = [_finish(node, folded.bias, buffers, context)]
        if self.in_place and folded.bias is None and argument(node, 3) is None and (
                node.about.params.get("activation") is None):
            self.launches = []

    def convolve(self, into: Tensor | None = None) -> Tensor:
        """Return the convolution alone, for all pixels: in the value's own memory, or another."""
        about = self.node.about
        x = self.buffers.inputs[argument(self.node, 0).index].value
        if self.in_place:
            params, cudnn = about.params, torch.backends.cudnn
            given: Tensor = torch.ops.aten.cudnn_convolution.out(
                x, self.weight, params["padding"], params["stride"], params["dilation"],
                params["groups"], cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32,
                out=self.buffers.output.value if into is None else into)
            return given
        given = about.function(x, self.weight, **(about.params | {"activation": None}))
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


def _writes_in_place(node: DeltaNode, buffers: Buffers) -> bool:
    """Whether cuDNN can write where the value is, not between others of a concatenation."""
    about, value = node.about, buffers.output.value
    assert about.operator is not None
    return (about.operator.name == "conv2d" and pixel_step(buffers.output) == channels_of(
        buffers.output) and torch.backends.cudnn.is_acceptable(value)
        and "out" in torch.ops.aten.cudnn_convolution.overloads())


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


def everywhere(launches: Iterable[Launch]) -> list[Launch]:
    """Return what does the same for all pixels, without lists or comparing where it would."""
    return [replace(launch, kernel=replace(launch.kernel, defines=(*launch.kernel.defines,
                                                                   ("ALL", 1))))
            if launch.kernel.entry in OF_LISTS else launch
            for launch in launches if launch.kernel.entry not in NEEDLESS]


def dense_of(step: Step) -> Step:
    """Return the dense way of a step of this backend."""
    own: Step | None = getattr(step, "dense", None)
    if own is not None:
        return own
    made = copy.copy(step)
    for name in {"launches", "before", "behind"} & vars(step).keys():
        setattr(made, name, everywhere(getattr(step, name)))
    return made


def foresee(node: DeltaNode, step: Any, context: Context) -> bool:
    """Settle what the dense way counts without looking, and what candidates cost the sparse way.

    Returns:
        Whether the node has less to do by the dense way, and so has a say in which is taken.
    """
    tally, edge = context.tallies[node.about.name], step.buffers.output
    pixels, listed = edge.mask.numel(), [*NEEDLESS, *OF_LISTS]
    entries = [launch.kernel.entry for launch in step.launches]
    own = getattr(step, "dense", None) is not None
    if own or entries[-1] in listed:  # no kernel that counts marks what changed
        context.wholes[tally.changed] = pixels
    if not own and any(entry not in listed for entry in entries):
        return False
    changed = {other.changed for other in context.tallies.values()}
    if tally.candidates[0] not in changed:  # a list of its own, or shared
        context.wholes[tally.candidates[0]] = pixels
    if node.about.aliases or not tally.candidates_are_scheduled:
        return False
    context.weigh(tally.candidates, cost_of_pixel(node, step.buffers), pixels)
    return True


def break_even(cost_of_all: float, nodes: int) -> float:
    """Return the share of work from which on the dense way is taken.

    Args:
        cost_of_all: see `cost_of_pixel`; of all pixels of all nodes that have less to do by it.
        nodes: how many they are.
    """
    return min(BREAK_EVEN + BYTES_A_NODE * nodes / cost_of_all, LAST)


def cost_of_pixel(node: DeltaNode, buffers: Buffers) -> float:
    """Return what a candidate costs the sparse way, in bytes moved, about."""
    about = node.about
    pixels = about.output.pixels
    read = sum(edge.value.numel() / about.output.lanes / pixels for edge in buffers.inputs)
    numbers = read + 2 * channels_of(buffers.output)  # the old value, and the new one
    return numbers * buffers.output.value.element_size() + (
        2 * node.dense_multiply_adds / pixels / OPERATIONS_A_BYTE)
