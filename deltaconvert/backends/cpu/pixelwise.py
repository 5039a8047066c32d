"""Operators with a function on gathered pixels: that function, on what their taps pick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

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
    pixels = about.output.lanes + 1  # so that a constant with lanes of its own is noticed
    sizes = [(spec.shape[1], *footprint.taps) for spec, footprint in
             zip(about.inputs, about.footprints, strict=True) if spec.shape is not None]
    try:
        result = apply(node, [torch.zeros(pixels, *size) for size in sizes])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"does not work on single pixels ({str(error).splitlines()[0]})"
    assert about.output.shape is not None
    if tuple(result.shape) != (pixels, about.output.shape[1], 1, 1):
        return "a constant differs from pixel to pixel"
    return None if result.dtype == torch.float32 else f"computes {result.dtype} from float32"


def apply(node: DeltaNode, values: Sequence[Tensor]) -> Tensor:
    """Call an operator's pixelwise function on float32 ``[M, C, taps_y, taps_x]`` inputs.

    Constants are float32 too: what is stored is rounded once, when it is stored.
    """
    about = node.about
    assert about.operator is not None
    assert about.operator.pixelwise is not None
    args, params = pytree.tree_map(_widened, (about.args, about.params))
    return about.operator.pixelwise(*fill(args, tuple(values)), **fill(params, tuple(values)))


def _widened(constant: Any) -> Any:
    stored = isinstance(constant, Tensor) and constant.dtype == torch.bfloat16
    return constant.float() if stored else constant


def _width(node: DeltaNode) -> int:
    """Return the numbers that a pixel takes: the inputs' channels times taps, and the output's."""
    about = node.about
    gathered = sum(spec.shape[1] * math.prod(footprint.taps) for spec, footprint in
                   zip(about.inputs, about.footprints, strict=True) if spec.shape is not None)
    assert about.output.shape is not None
    return gathered + about.output.shape[1]


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and memory for each input's rows of a chunk."""
    width = _width(node)
    return list_scratch(node) + row_scratch("gathered", chunk_rows(width), width, workers)


def bind(node: DeltaNode, weights: None, buffers: Buffers, workers: Workers) -> ChunkedStep:
    """Return the step of a pixelwise operator."""
    scratch = [buffers.scratch[f"cpu.gathered.{w}"] for w in range(workers.threads)]
    width = _width(node)
    return ChunkedStep(node, buffers, Finish(node, buffers, workers.threads),
                       Pixelwise(node, buffers, scratch), workers, chunk_rows(width),
                       0.3 * width)


class Pixelwise:
    """Gathers the inputs' pixels and calls the operator's function on them."""

    def __init__(self, node: DeltaNode, buffers: Buffers, scratch: Sequence[Tensor]) -> None:
        """Make a gather for each input."""
        self.node, self.scratch = node, scratch
        assert node.about.operator is not None
        missing = node.about.operator.missing(node.about.params)
        self.gathers = [Gather(flat_map(edge.value), footprint, missing=missing)
                        for edge, footprint in
                        zip(buffers.inputs, node.about.footprints, strict=True)]

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        values, start = [], 0
        for gather in self.gathers:
            rows = floats(self.scratch[worker][start:], len(pixels), gather.width)
            gather(pixels, rows.numpy())
            taps = gather.rows.shape[1], gather.cols.shape[1]
            values.append(rows.view(len(pixels), *taps, -1).permute(0, 3, 1, 2))
            start += 4 * rows.numel()
        new = apply(self.node, values).reshape(len(pixels), -1)
        result: np.ndarray = new.contiguous().numpy()
        return result
