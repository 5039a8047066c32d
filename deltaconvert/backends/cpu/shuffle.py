"""Pixel shuffle: each output pixel takes the channels that are its place's in a square."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu import pooling
from deltaconvert.backends.cpu.finish import Finish
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat_map, floats
from deltaconvert.backends.cpu.step import ChunkedStep, chunk_rows
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.nodes import DeltaNode

refusal, plan = pooling.refusal, pooling.plan


def bind(node: DeltaNode, weights: None, buffers: Buffers, workers: Workers) -> ChunkedStep:
    """Return the step of a pixel shuffle."""
    finish = Finish(node, buffers, workers.threads)
    new = [buffers.scratch[f"cpu.new.{w}"] for w in range(workers.threads)]
    produce = PixelShuffle(flat_map(buffers.inputs[0].value), node.about.params["factor"],
                           finish.out, new)
    channels = finish.out.channels
    return ChunkedStep(node, buffers, finish, produce, workers, chunk_rows(channels),
                       0.3 * channels)


class PixelShuffle:
    """Computes rows of a pixel shuffle.

    Args:
        source: the map that is read.
        factor: of the shuffle.
        out: the map that is written, for its size.
        new: scratch for the rows, one a worker.
    """

    def __init__(self, source: FlatMap, factor: int, out: FlatMap, new: Sequence[Tensor]) -> None:
        """Keep them."""
        self.source, self.factor, self.out, self.new = source, factor, out, new

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        rows: np.ndarray = floats(self.new[worker], len(pixels), self.out.channels).numpy()
        shuffle_rows(self.source.data, self.source.step, self.factor, self.out.height,
                     self.out.width, pixels, rows)
        return rows


@loop
def shuffle_rows(data, step, factor, height, width, pixels, out):
    """Copy channel ``c factor^2 + i factor + j`` for the pixel at ``(i, j)`` of its square."""
    square = factor * factor
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        x = pixel % width
        y = pixel // width % height
        lane = pixel // (width * height)
        source = (lane * (height // factor) + y // factor) * (width // factor) + x // factor
        start = source * step + y % factor * factor + x % factor
        for c in range(out.shape[1]):
            out[i, c] = load(data, start + c * square)
