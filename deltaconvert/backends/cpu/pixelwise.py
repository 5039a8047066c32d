"""Operators that read one pixel of each input: their own function on gathered pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.finish import Finish
from deltaconvert.backends.cpu.gather import Gather
from deltaconvert.backends.cpu.maps import flat_map, floats
from deltaconvert.backends.cpu.rows import list_scratch
from deltaconvert.backends.cpu.step import ChunkedStep, chunk_rows, row_scratch
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.nodes import DeltaNode, fill


def refusal(node: DeltaNode) -> str | None:
    """Return why this operator must run elsewhere; found by trying it on a few pixels."""
    about = node.about
    if any(footprint.taps != (1, 1) for footprint in about.footprints):
        return "a pixel reads several pixels of an input"
    pixels = about.output.lanes + 1  # so that a constant with lanes of its own is noticed
    shapes = [spec.shape for spec in about.inputs]
    try:
        result = apply(node, [torch.zeros(pixels, s[1], 1, 1) for s in shapes if s is not None])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"does not work on single pixels ({str(error).splitlines()[0]})"
    assert about.output.shape is not None
    if tuple(result.shape) != (pixels, about.output.shape[1], 1, 1):
        return "a constant differs from pixel to pixel"
    return None if result.dtype == torch.float32 else f"computes {result.dtype} from float32"


def apply(node: DeltaNode, values: Sequence[Tensor]) -> Tensor:
    """Call an operator's pixelwise function on ``[M, C, 1, 1]`` inputs."""
    about = node.about
    assert about.operator is not None
    assert about.operator.pixelwise is not None
    return about.operator.pixelwise(
        *fill(about.args, tuple(values)), **fill(about.params, tuple(values)))


def _widths(node: DeltaNode) -> list[int]:
    """Return the channels of the inputs and of the output."""
    shapes = [*(spec.shape for spec in node.about.inputs), node.about.output.shape]
    return [shape[1] for shape in shapes if shape is not None]


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and memory for each input's rows of a chunk."""
    width = sum(_widths(node))
    return list_scratch(node) + row_scratch("gathered", chunk_rows(width), width, workers)


def bind(node: DeltaNode, weights: None, buffers: Buffers, workers: Workers) -> ChunkedStep:
    """Return the step of a pixelwise operator."""
    scratch = [buffers.scratch[f"cpu.gathered.{w}"] for w in range(workers.threads)]
    width = sum(_widths(node))
    return ChunkedStep(node, buffers, Finish(node, buffers, workers.threads),
                       Pixelwise(node, buffers, scratch), workers, chunk_rows(width),
                       0.3 * width)


class Pixelwise:
    """Gathers the inputs' pixels and calls the operator's function on them."""

    def __init__(self, node: DeltaNode, buffers: Buffers, scratch: Sequence[Tensor]) -> None:
        """Make a gather for each input."""
        self.node, self.scratch = node, scratch
        self.gathers = [Gather(flat_map(edge.value), footprint) for edge, footprint in
                        zip(buffers.inputs, node.about.footprints, strict=True)]

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        values, start = [], 0
        for gather in self.gathers:
            rows = floats(self.scratch[worker][start:], len(pixels), gather.width)
            gather(pixels, rows.numpy())
            values.append(rows[:, :, None, None])
            start += 4 * rows.numel()
        new = apply(self.node, values).reshape(len(pixels), -1)
        result: np.ndarray = new.contiguous().numpy()
        return result
