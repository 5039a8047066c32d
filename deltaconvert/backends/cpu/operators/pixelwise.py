"""Operators with a function on gathered pixels: that function, on what their taps pick."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats3, Longs2, call
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of, list_scratch
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, chunk_rows, row_scratch
from deltaconvert.backends.cpu.maps.flat import flat_map, ints_at, rows_of
from deltaconvert.backends.cpu.maps.gather import Gather
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode, fill


def refusal(node: DeltaNode) -> str | None:
    """Return why this operator must run elsewhere; found by trying it on a few pixels."""
    about = node.about
    pixels = about.output.lanes + 1  # so that a constant with lanes of its own is noticed
    sizes = [(spec.shape[1], *footprint.taps) for spec, footprint in
             zip(about.inputs, about.footprints, strict=True) if spec.shape is not None]
    try:
        result = apply(node, [torch.zeros(pixels, *size, dtype=torch.float32, device="cpu")
                              for size in sizes])
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
    """Return the list of candidates, and memory for the rows of a chunk, in and out."""
    assert node.about.output.shape is not None
    width, channels = _width(node), node.about.output.shape[1]
    rows = chunk_rows(width)
    return [*list_scratch(node), row_scratch("gathered", rows, width - channels, workers),
            row_scratch("new", rows, channels, workers)]


class Pixelwise(NamedTuple):
    """A step whose rows Python computes.

    Args:
        parts, ending: of its step.
        call: address of what computes a part.
        chunk: int64 ``[workers, 2]``, where that is told the address and the number of its
            pixels.
        new: float32 ``[workers, rows, C]``, where it leaves them.
    """

    parts: Parts
    ending: Ending
    call: int
    chunk: Longs2
    new: Floats3


@loop
def compute_rows(task, pixels, new, worker):
    """Have Python compute them."""
    task.chunk[worker, 0] = pixels.ctypes.data
    task.chunk[worker, 1] = pixels.shape[0]
    call(task.call, 0, worker)


COMPUTE = rowwise(Pixelwise, compute_rows)


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a pixelwise operator."""
    assert node.about.output.shape is not None
    width, channels, threads = _width(node), node.about.output.shape[1], engine.workers.threads
    rows = chunk_rows(width)
    head = head_of(node, buffers, engine, 0.3 * width, rows)
    chunk = np.zeros((threads, 2), np.int64)
    new = rows_of(buffers.scratch["cpu.new"], threads, rows, channels)
    memory = rows_of(buffers.scratch["cpu.gathered"], threads, rows * (width - channels))
    compute = Rows(node, buffers, memory)

    def call_back(worker: int) -> None:
        address, count = chunk[worker].tolist()
        new[worker, :count] = compute(worker, ints_at(address, count))

    task = Pixelwise(head.parts, ending_of(node, buffers, head, engine),
                     engine.callback(call_back), chunk, new)
    return CompiledStep(node, engine, head, COMPUTE.of(task.ending.out), task)


class Rows:
    """Gathers the inputs' pixels and calls the operator's function on them."""

    def __init__(self, node: DeltaNode, buffers: Buffers, memory: np.ndarray) -> None:
        """Make a gather for each input."""
        self.node, self.memory = node, memory
        assert node.about.operator is not None
        missing = node.about.operator.missing(node.about.params)
        self.gathers = [Gather(flat_map(edge.value), footprint, missing=missing)
                        for edge, footprint in
                        zip(buffers.inputs, node.about.footprints, strict=True)]

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """Return float32 ``[M, C]`` for int32 ``[M]`` pixels; each worker has its own memory."""
        values, start = [], 0
        for gather in self.gathers:
            size = len(pixels) * gather.width
            rows = self.memory[worker, start:start + size].reshape(len(pixels), gather.width)
            gather(pixels, rows)
            taps = gather.rows.shape[1], gather.cols.shape[1]
            values.append(torch.from_numpy(rows).view(len(pixels), *taps, -1).permute(0, 3, 1, 2))
            start += size
        new = apply(self.node, values).reshape(len(pixels), -1)
        result: np.ndarray = new.contiguous().numpy()
        return result
