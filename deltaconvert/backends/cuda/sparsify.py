"""The door in, by `sparsify.cu`: the frame is examined, then what changed is replaced."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cuda.candidates import THREADS, blocks
from deltaconvert.backends.cuda.context import PACK_BYTES, Context, pixel_step, size_of
from deltaconvert.backends.cuda.kinds import Bound, Program, Unfit
from deltaconvert.config import Config
from deltaconvert.cuda.arguments import FrameArgs
from deltaconvert.cuda.launcher import Launch
from deltaconvert.cuda.loader import kernel
from deltaconvert.nodes import DeltaNode

if TYPE_CHECKING:
    from deltaconvert.backends.cuda.runner import Runner

STRIP, MOST_PACKS = 8, 6  # pixels that are compared together, as in sparsify.cu
BLOCK, WARPS = 8, THREADS // 32  # pixels a side, and how many blocks a thread block has at once
MOST_PARTS, NUMBERS_A_THREAD = 1024, 8  # of what is no map


def prepare(node: DeltaNode, program: Program) -> None:
    """Return nothing, of a door in."""
    if node.about.rule != "sparsify":
        raise Unfit


def plan(node: DeltaNode, data: None, program: Program) -> tuple[list[Scratch], int]:
    """Return the marks of the frame under examination, or the parts of its norm."""
    spec = node.about.output
    size = math.prod(spec.mask_shape) if spec.is_map else 4 * MOST_PARTS * spec.lanes
    return [Scratch(f"cuda.marks.{node.about.name}", size)], 0


def bind(node: DeltaNode, data: None, buffers: Buffers, context: Context,
         program: Program) -> Bound:
    """Return the step, whose candidates need no counter: they are all pixels."""
    return Bound(CudaSparsify(node, program.config, buffers, context), [])


class CudaSparsify:
    """See `SparsifyStep`. What is not finite is found on the device: `examine` never waits."""

    def __init__(self, node: DeltaNode, config: Config, buffers: Buffers,
                 context: Context) -> None:
        """Settle all arguments but the frame's."""
        edge = buffers.output
        height, width = size_of(edge)
        lanes = edge.mask.shape[0]
        context.doors[context.tallies[node.about.name].changed] = 1
        args = FrameArgs(
            rule=context.rule(node, buffers), value=edge.value.data_ptr(),
            marks=buffers.scratch[f"cuda.marks.{node.about.name}"].data_ptr(),
            bad=context.bad.data_ptr(), step=pixel_step(edge), lanes=lanes, height=height,
            width=width, threshold=config.input_threshold, cap=config.cap)
        self.context, self.buffers = context, buffers  # kept: the launches hold addresses
        self.runner: Runner | None = None
        self.place: tuple[object, ...] = ()  # of the frame that the launches point to
        self.packs = _packs(args.step * edge.value.element_size()) if edge.spec.is_map else 0
        if edge.spec.is_map:
            block = config.input_test == "block" and config.input_threshold > 0
            pixels = edge.mask.numel()
            units = lanes * -(-height // BLOCK) * -(-width // BLOCK) * WARPS * 4 if block else (
                pixels)
            self.examination = self._launch("examine_blocks" if block else "examine_pixels", args,
                                            (blocks(context, units, THREADS, 8), 1))
            self.replacement = self._launch("replace_pixels", args, (
                blocks(context, pixels, THREADS * STRIP, 8), 1))
        else:
            parts = blocks(context, args.rule.channels, THREADS * NUMBERS_A_THREAD)
            grid = min(parts, MOST_PARTS), lanes
            self.examination = self._launch("examine_values", args, grid)
            self.replacement = self._launch("replace_values", args, grid)

    def _launch(self, entry: str, args: FrameArgs, grid: tuple[int, int]) -> Launch:
        packs = self.packs if entry.startswith("examine") else 0
        which = kernel("sparsify.cu", entry, self.buffers.output.value.dtype, PACKS=packs)
        return Launch(which, args, grid, THREADS, 4 * WARPS if entry.endswith("values") else 0)

    @property
    def launches(self) -> list[Launch]:
        """All that it launches."""
        return [self.examination, self.replacement]

    def examine(self, frame: Tensor) -> None:
        """Mark what changed, in memory of its own; or leave it to the graph of the whole frame.

        Raises:
            FrameError: an earlier frame was refused, and the device has said so by now.
        """
        if self.runner is not None:
            self.runner.raise_refusals()
        self.point_to(frame)
        if self.runner is None or not self.runner.replays:
            self.context.launcher.launch(self.examination)

    def __call__(self, frame: Tensor) -> None:
        """Replace the pixels that were marked; all of a fresh lane."""
        self.point_to(frame)
        self.context.launcher.launch(self.replacement)

    def point_to(self, frame: Tensor) -> None:
        """Let both launches read a frame."""
        is_map = self.buffers.output.spec.is_map
        if not is_map:
            frame = self.frame = frame.contiguous()  # kept until it is read
        place = frame.data_ptr(), *frame.stride()
        if place == self.place:
            return
        self.place, args = place, self.examination.args
        assert isinstance(args, FrameArgs)
        if not is_map:
            args.frame, args.stride_lane = place[0], args.step
            return
        args.frame, args.stride_lane, args.stride_channel, args.stride_row, args.stride_col = place
        args.packed = (
            frame.is_contiguous(memory_format=torch.channels_last)
            and args.step == args.rule.channels
            and self.packs > 0
            and args.frame % PACK_BYTES == 0 and args.value % PACK_BYTES == 0)


def _packs(pixel_bytes: int) -> int:
    """Return how many packs a strip is, where it is a few whole ones; else 0."""
    packs, rest = divmod(STRIP * pixel_bytes, PACK_BYTES)
    return packs if not rest and packs <= MOST_PACKS else 0
