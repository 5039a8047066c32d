"""Convolutions, grouped and transposed ones too: rows of neighbourhoods times a filter.

There is no dense fallback: where all of a lane changes, its rows take no longer than the
library's own convolution of the whole lane and the passes behind it (docs/performance.md).
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from itertools import pairwise

import numpy as np

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.addresses import find_rows, source_of
from deltaconvert.backends.cpu.depthwise import Depthwise
from deltaconvert.backends.cpu.filters import (
    PIECE,
    Filters,
    Phase,
    argument,
    is_depthwise,
    is_transposed,
    row_size,
    weight_refusal,
)
from deltaconvert.backends.cpu.finish import Finish, finish_rows, nothing
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.kernel import BLOCK, PANEL, multiply_rows, take
from deltaconvert.backends.cpu.maps import flat_map, floats, ints, like, longs
from deltaconvert.backends.cpu.rows import CandidateFinder, list_scratch
from deltaconvert.backends.cpu.step import ChunkedStep, chunk_rows, row_scratch
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Slot

SHARED_MULTIPLY_ADDS = 2_000_000
# Numbers that a chunk of rows and its results take, of the second cache's quarter of a million.
CHUNK_NUMBERS = 120_000
# Of the rows that a worker takes, so that one that wakes late leaves little undone.
PARTS_OF_A_WORKER = 2


def refusal(node: DeltaNode) -> str | None:
    """Return why this convolution must run elsewhere."""
    reason = weight_refusal(node)
    residual = argument(node, 3)
    if reason is None and isinstance(residual, Slot):
        if not _reads_own_pixel(node.about.footprints[residual.index]):
            return "the residual's own pixel is not among the taps that make candidates"
        if node.about.inputs[residual.index].shape != node.about.output.shape:
            return "the residual has another shape than the output"
    elif reason is None and residual is not None:
        return "the residual is a constant"
    return reason


def _reads_own_pixel(footprint: Footprint) -> bool:
    """Whether each output pixel's own place is among its taps, as for ``conv(x) + x``."""
    return footprint.size_in == footprint.size_out and all(
        bool((table == np.arange(len(table))[:, None]).any(1).all())
        for table in (footprint.rows, footprint.cols))


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the lists and, for every worker, the addresses and results of a chunk of rows."""
    shape = node.about.output.shape
    assert shape is not None
    if is_depthwise(node):
        return list_scratch(node) + row_scratch("new", chunk_rows(shape[1]), shape[1], workers)
    rows = product_rows(shape[1])
    segments, copied = row_size(node)
    scratch = list_scratch(node) + row_scratch("new", rows, shape[1] + PANEL, workers)
    scratch += row_scratch("addresses", rows, 2 * segments, workers)
    scratch += row_scratch("copies", rows, copied, workers)
    if is_transposed(node):
        scratch.append(Scratch("cpu.phases", 4 * int(np.prod(node.about.output.mask_shape))))
    return scratch


def product_rows(columns: int) -> int:
    """Return how many rows are multiplied and finished before the next, whole blocks.

    So many that a piece of the filter is read for many rows, and so few that their numbers of
    that piece and their results stay in the second cache.
    """
    return max(CHUNK_NUMBERS // (PIECE + columns) // BLOCK, 1) * BLOCK


def bind(node: DeltaNode, filters: Filters, buffers: Buffers,
         workers: Workers) -> ConvolutionStep | ChunkedStep:
    """Return the step of a convolution."""
    finish = _finish(node, filters, buffers, workers)
    if filters.depthwise is None:
        return ConvolutionStep(node, filters, buffers, finish, workers)
    source = node.about.args[0].index
    produce = Depthwise(flat_map(buffers.inputs[source].value), node.about.footprints[source],
                        filters.depthwise, [buffers.scratch[f"cpu.new.{w}"]
                                            for w in range(workers.threads)])
    return ChunkedStep(node, buffers, finish, produce, workers,
                       chunk_rows(finish.out.channels), 0.05 * filters.depthwise.numel())


def _finish(node: DeltaNode, filters: Filters, buffers: Buffers, workers: Workers) -> Finish:
    residual = argument(node, 3)
    added = buffers.inputs[residual.index].value if isinstance(residual, Slot) else None
    return Finish(node, buffers, workers.threads, bias=filters.bias, residual=added,
                  activation=node.about.params.get("activation"))


class Product:
    """Computes and finishes the pixels of one phase.

    Args:
        node: the convolution.
        phase: of it.
        buffers: its edges.
        finish: the end of its step.
        workers: how many call at once.
    """

    def __init__(self, node: DeltaNode, phase: Phase, buffers: Buffers, finish: Finish,
                 workers: int) -> None:
        """Cut the footprint to the phase's taps; view the working memory."""
        source, rows = node.about.args[0].index, product_rows(finish.out.channels)
        self.phase, self.finish = phase, finish
        self.source = source_of(flat_map(buffers.inputs[source].value),
                                node.about.footprints[source], phase.taps, phase.lines)
        self.taken = np.zeros(1, np.int64)
        columns = finish.out.channels + PANEL
        copied = phase.segments * phase.numbers if phase.lines else 0
        self.memory = [
            (floats(buffers.scratch[f"cpu.new.{w}"], rows, columns).numpy(),
             longs(buffers.scratch[f"cpu.addresses.{w}"], rows // BLOCK, phase.segments, BLOCK),
             like(self.source.data, buffers.scratch[f"cpu.copies.{w}"], rows, copied))
            for w in range(workers)]

    def begin(self, pixels: np.ndarray, workers: int) -> None:
        """Take up the pixels of a frame, to be shared by so many workers."""
        self.pixels = pixels
        self.taken[0] = 0
        share = -(-len(pixels) // (workers * PARTS_OF_A_WORKER)) if workers > 1 else len(pixels)
        self.rows = min(max(-(-share // BLOCK), 1) * BLOCK, len(self.memory[0][0]))

    def __call__(self, worker: int) -> None:
        """Apply the rule at the pixels that no other worker takes."""
        phase, finish = self.phase, self.finish
        new, addresses, copies = self.memory[worker]
        if finish.compiled:
            convolve(self.source, self.pixels, self.taken, self.rows, copies, addresses,
                     phase.pieces, phase.filters, phase.panels, new, finish.ending,
                     finish.counts[worker])
            return
        while len(chunk := take_pixels(self.pixels, self.taken, self.rows)):
            multiply(self.source, chunk, copies, addresses, phase.pieces, phase.filters,
                     phase.panels, new)
            finish.rows(worker, new, chunk)


@loop
def take_pixels(pixels, taken, rows):
    """Return the next pixels that nobody has taken; none at the end."""
    start = take(taken.ctypes.data, rows)
    return pixels[start:start + rows]


@loop
def multiply(source, pixels, copies, addresses, pieces, filters, panels, new):
    """Write the products of some pixels to ``new``; see `find_rows` and `multiply_rows`."""
    find_rows(source, pixels, copies, addresses)
    multiply_rows(addresses, pixels.shape[0], pieces, filters, panels, new)


@loop
def convolve(source, pixels, taken, rows, copies, addresses, pieces, filters, panels, new, ending,
             counts):
    """Compute and finish pixels, so many rows at a time, until all are taken."""
    while True:
        chunk = take_pixels(pixels, taken, rows)
        if chunk.shape[0] == 0:
            return
        multiply(source, chunk, copies, addresses, pieces, filters, panels, new)
        finish_rows(new, chunk, ending, counts)


class ConvolutionStep:
    """The step of a convolution by products."""

    def __init__(self, node: DeltaNode, filters: Filters, buffers: Buffers, finish: Finish,
                 workers: Workers) -> None:
        """Resolve buffers and tables."""
        self.node, self.filters, self.finish, self.workers = node, filters, finish, workers
        self.finder = CandidateFinder(node, buffers)
        self.phases = [Product(node, phase, buffers, finish, workers.threads)
                       for phase in filters.phases]
        self.sorted = None
        if len(self.phases) > 1:
            self.sorted = ints(buffers.scratch["cpu.phases"],
                               finish.out.lanes * finish.out.pixels)

    def __call__(self) -> Work:
        """Apply the rule at this frame's candidates."""
        found = self.finder.find()
        if found is None:
            nothing(self.finish)
            return Work(0, 0)
        self.finish.begin()
        self._compute(found.pixels)
        self.finish.end()
        return Work(found.total, found.total * self.node.about.multiply_adds)

    def _compute(self, pixels: np.ndarray) -> None:
        share = len(pixels) * self.node.about.multiply_adds > SHARED_MULTIPLY_ADDS
        workers = self.workers.threads if share else 1
        pixels, bounds = self._by_phase(pixels)
        for phase, (start, stop) in zip(self.phases, pairwise(bounds), strict=True):
            phase.begin(pixels[start:stop], workers)

        def part(worker: int, index: int) -> None:
            for phase in self.phases:
                phase(worker)

        self.workers.run(part, workers, share)

    def _by_phase(self, pixels: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Sort pixels by phase, where there are several."""
        if self.sorted is None:
            return pixels, [0, len(pixels)]
        bounds = np.zeros(len(self.phases) + 1, np.int64)
        sort_by_phase(pixels, self.finish.out.height, self.finish.out.width, *self.filters.period,
                      self.sorted, bounds)
        return self.sorted, bounds.tolist()


@loop
def sort_by_phase(pixels, height, width, period_y, period_x, out,
                  bounds):
    """Write pixels to ``out``, phase by phase; phase ``i`` ends at ``bounds[i + 1]``."""
    for i in range(pixels.shape[0]):
        y, x = pixels[i] // width % height, pixels[i] % width
        bounds[y % period_y * period_x + x % period_x + 1] += 1
    at = np.empty(bounds.shape[0], np.int64)
    for i in range(bounds.shape[0] - 1):
        at[i] = bounds[i]
        bounds[i + 1] += bounds[i]
    for i in range(pixels.shape[0]):
        y, x = pixels[i] // width % height, pixels[i] % width
        phase = y % period_y * period_x + x % period_x
        out[at[phase]] = pixels[i]
        at[phase] += 1

