"""The dense way of a convolution: PyTorch's own for whole maps, the rule behind it.

Which of the two ways a frame takes is decided on the device, for all convolutions together, by
what there was to do in the last frame; `Runner` holds a graph of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda import pixels
from deltaconvert.backends.cuda.context import Context, Lists, channels_of, pixel_step
from deltaconvert.backends.cuda.filters import argument
from deltaconvert.cuda.arguments import PixelArgs
from deltaconvert.cuda.launcher import Launch, launch_all
from deltaconvert.nodes import DeltaNode

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.convolution import Folded

# The dense way is taken from this share of the sparse way's work on, and more where nodes are
# small: each has one kernel more, and a product of whole maps. Settled between what ResNet-50 and
# HRNet-W32 measured with one stream and eight, see docs/performance-cuda.md; the work is counted in
# bytes that are moved, and in operations that take as long.
BREAK_EVEN = 0.37
OPERATIONS_A_BYTE = 100
BYTES_A_NODE = 9e6


class DenseStep:
    """A convolution of whole maps by the library, compared at the candidates."""

    def __init__(self, node: DeltaNode, folded: Folded, buffers: Buffers, context: Context,
                 before: Sequence[Launch], made: Lists) -> None:
        """Settle the launches.

        Args:
            node, folded, buffers, context: as for the sparse way.
            before: what makes the list of candidates, where no earlier node has.
            made: that list.
        """
        self.node, self.buffers, self.launcher = node, buffers, context.launcher
        self.weight = folded.whole
        self.before = before
        self.behind = pixels.finish_given(node, folded.bias, buffers, context, made)

    @property
    def launches(self) -> list[Launch]:
        """All that it launches itself."""
        return [*self.before, self.behind]

    def convolve(self) -> Tensor:
        """Return the convolution alone, for all pixels."""
        about = self.node.about
        x = self.buffers.inputs[argument(self.node, 0).index].value
        given: Tensor = about.function(x, self.weight, **(about.params | {"activation": None}))
        return given.contiguous(memory_format=torch.channels_last)

    def __call__(self) -> None:
        """Run once."""
        launch_all(self.launcher, self.before)
        given, args = self.convolve(), self.behind.args
        assert isinstance(args, PixelArgs)
        args.source[0].data = given.data_ptr()  # of memory that is the graph's own
        self.launcher.launch(self.behind)


def lies_whole(buffers: Buffers) -> bool:
    """Whether the maps lie as the library wants them: not between others of a concatenation."""
    return all(pixel_step(edge) == channels_of(edge) for edge in buffers.inputs)


def break_even(cost_of_all: float, nodes: int) -> float:
    """Return the share of work from which on the dense way is taken.

    Args:
        cost_of_all: see `cost_of_pixel`; of all pixels of all nodes with a dense way.
        nodes: how many they are.
    """
    return BREAK_EVEN + BYTES_A_NODE * nodes / cost_of_all


def cost_of_pixel(node: DeltaNode, buffers: Buffers) -> float:
    """Return what a candidate costs the sparse way, in bytes moved, about."""
    about = node.about
    pixels = about.output.pixels
    read = sum(edge.value.numel() / about.output.lanes / pixels for edge in buffers.inputs)
    numbers = read + 2 * channels_of(buffers.output)  # the old value, and the new one
    return numbers * buffers.output.value.element_size() + (
        2 * node.dense_multiply_adds / pixels / OPERATIONS_A_BYTE)
