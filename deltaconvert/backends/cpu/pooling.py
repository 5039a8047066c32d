"""Pooling and resizing: a loop over candidates and taps, vectorised over the channels."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.finish import Finish
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat_map, floats
from deltaconvert.backends.cpu.rows import list_scratch
from deltaconvert.backends.cpu.step import ChunkedStep, chunk_rows, row_scratch
from deltaconvert.backends.cpu.taps import list_taps, taps_of
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.backends.divisors import divisors_of
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Description, Slot

_ZERO = np.float32(0)
_LOWEST = np.float32(-np.inf)


def refusal(node: DeltaNode) -> str | None:
    """Return why this pooling or resizing must run elsewhere."""
    one = len(node.about.inputs) == 1 and isinstance(node.about.args[0], Slot)
    return None if one else "it is of something else than one map"


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and the rows of a chunk."""
    shape = node.about.output.shape
    assert shape is not None
    return list_scratch(node) + row_scratch("new", chunk_rows(shape[1]), shape[1], workers)


def bind(node: DeltaNode, weights: None, buffers: Buffers, workers: Workers) -> ChunkedStep:
    """Return the step of a pooling or a resizing."""
    about = node.about
    source, footprint = flat_map(buffers.inputs[0].value), about.footprints[0]
    new = [buffers.scratch[f"cpu.new.{w}"] for w in range(workers.threads)]
    produce = Pooling(source, footprint, new, *_loop_of(about, footprint))
    row_ns = 0.1 * source.channels * footprint.taps[0] * footprint.taps[1]
    return ChunkedStep(node, buffers, Finish(node, buffers, workers.threads), produce, workers,
                       chunk_rows(source.channels), row_ns)


def _loop_of(about: Description, footprint: Footprint) -> tuple[Any, tuple[np.ndarray, ...]]:
    """Return the loop that computes a node, and the tables that it takes beside the taps."""
    operator = about.operator
    assert operator is not None
    if operator.weights is not None:
        assert about.shapes is not None
        return weighted_rows, operator.weights(about.shapes)
    if "max" in operator.name:
        return max_rows, ()
    return mean_rows, divisors_of(about, footprint)


class Pooling:
    """Computes rows of a pooling or a resizing.

    Args:
        source: the map that is read.
        footprint: its taps.
        new: scratch for the rows, one a worker.
        compute: the loop.
        tables: what the loop takes beside the taps.
    """

    def __init__(self, source: FlatMap, footprint: Footprint, new: Sequence[Tensor],
                 compute: Callable[..., None], tables: tuple[np.ndarray, ...]) -> None:
        """Resolve the tables."""
        self.taps, self.new, self.compute = taps_of(source, footprint), new, compute
        self.channels = source.channels
        self.tables = [np.array(t, np.float32, order="C") for t in tables]

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """See `Producer`."""
        out: np.ndarray = floats(self.new[worker], len(pixels), self.channels).numpy()
        self.compute(self.taps, *self.tables, pixels, out)
        return out


@loop
def max_rows(taps, pixels, out):
    """Take the maximum over taps; once NaN, it stays NaN, as in PyTorch."""
    channels = out.shape[1]
    starts = np.empty(taps.rows.shape[1] * taps.cols.shape[1], np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        row = out[i]
        row[:] = _LOWEST
        for tap in range(list_taps(taps, np.int64(pixels[i]), starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            for c in range(channels):
                v = source[c]
                row[c] = v if v > row[c] or v != v else row[c]


@loop
def mean_rows(taps, row_divisors, col_divisors, pixels, out):
    """Sum over taps and divide."""
    channels = out.shape[1]
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    starts = np.empty(taps.rows.shape[1] * taps.cols.shape[1], np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = out[i]
        row[:] = _ZERO
        for tap in range(list_taps(taps, pixel, starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            for c in range(channels):
                row[c] += source[c]
        divisor = row_divisors[pixel // width_out % height_out] * col_divisors[pixel % width_out]
        for c in range(channels):
            row[c] = row[c] / divisor


@loop
def weighted_rows(taps, row_weights, col_weights, pixels, out):
    """Sum weight times input over taps; a tap's weight is its row's times its column's."""
    channels, taps_x = out.shape[1], taps.cols.shape[1]
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    starts = np.empty(taps.rows.shape[1] * taps_x, np.int64)
    places = np.empty_like(starts)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        y, x = pixel // width_out % height_out, pixel % width_out
        row = out[i]
        row[:] = _ZERO
        for tap in range(list_taps(taps, pixel, starts, places)):
            source = taps.data[starts[tap]:starts[tap] + channels]
            weight = row_weights[y, places[tap] // taps_x] * col_weights[x, places[tap] % taps_x]
            for c in range(channels):
                row[c] += weight * source[c]
