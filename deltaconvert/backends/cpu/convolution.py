"""Convolutions, grouped and transposed ones too: rows of neighbourhoods times a matrix.

Where most of a lane is to be computed, the library's own convolution computes it whole.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.depthwise import Depthwise
from deltaconvert.backends.cpu.filters import (
    Filters,
    Phase,
    argument,
    is_depthwise,
    is_transposed,
    row_width,
    weight_refusal,
)
from deltaconvert.backends.cpu.finish import Finish, nothing
from deltaconvert.backends.cpu.gather import Gather
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import flat_map, floats, ints
from deltaconvert.backends.cpu.rows import CandidateFinder, Candidates, list_scratch
from deltaconvert.backends.cpu.step import ChunkedStep, chunk_rows, row_scratch, split
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Slot

# Share of a lane from which the library's own convolution of the whole lane is faster.
DENSE_SHARE = 0.8
SHARED_MULTIPLY_ADDS = 2_000_000
# Rows of a finished chunk of a lane that was computed whole.
MOST_DENSE_ROWS = 2048


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
    """Return the lists and, for every worker, a chunk's gathered and computed rows."""
    shape = node.about.output.shape
    assert shape is not None
    if is_depthwise(node):
        return list_scratch(node) + row_scratch("new", chunk_rows(shape[1]), shape[1], workers)
    rows = chunk_rows(row_width(node) + shape[1])
    scratch = list_scratch(node) + row_scratch("new", rows, shape[1], workers)
    scratch += row_scratch("gathered", rows, row_width(node), workers)
    if is_transposed(node):
        scratch.append(Scratch("cpu.phases", 4 * int(np.prod(node.about.output.mask_shape))))
    return scratch


def bind(node: DeltaNode, filters: Filters, buffers: Buffers, workers: Workers,
         dense_fallback: bool) -> ConvolutionStep | ChunkedStep:
    """Return the step of a convolution."""
    finish = _finish(node, filters, buffers, workers)
    if filters.depthwise is None:
        return ConvolutionStep(node, filters, buffers, finish, workers, dense_fallback)
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


class PhaseRows:
    """Computes the pixels of one phase."""

    def __init__(self, node: DeltaNode, phase: Phase, buffers: Buffers, workers: int) -> None:
        """Cut the footprint to the phase's taps, and the channels to the groups."""
        source = node.about.args[0].index
        value = buffers.inputs[source].value
        self.matrices = phase.matrices
        channels = value.shape[1] // len(self.matrices)
        whole = len(self.matrices) == 1
        flat_value, footprint = flat_map(value), node.about.footprints[source]
        taps = None if (len(phase.taps[0]), len(phase.taps[1])) == footprint.taps else phase.taps
        self.gathers = [Gather(flat_value, footprint, taps,
                               None if whole else (group * channels, channels))
                        for group in range(len(self.matrices))]
        self.whole_map = None
        if whole and self.gathers[0].same:
            self.whole_map = value.permute(0, 2, 3, 1).as_strided(
                (flat_value.lanes * flat_value.pixels, channels), (flat_value.step, 1))
        self.channels = sum(m.shape[1] for m in self.matrices)
        self.gathered = [buffers.scratch[f"cpu.gathered.{w}"] for w in range(workers)]
        self.new = [buffers.scratch[f"cpu.new.{w}"] for w in range(workers)]

    def __call__(self, worker: int, pixels: np.ndarray) -> np.ndarray:
        """Gather and multiply; see `Producer`."""
        new = floats(self.new[worker], len(pixels), self.channels)
        start = 0
        for gather, matrix in zip(self.gathers, self.matrices, strict=True):
            stop = start + matrix.shape[1]
            columns = new if len(self.matrices) == 1 else new[:, start:stop]
            torch.mm(self._rows(worker, gather, pixels), matrix, out=columns)
            start = stop
        result: np.ndarray = new.numpy()
        return result

    def _rows(self, worker: int, gather: Gather, pixels: np.ndarray) -> Tensor:
        if self.whole_map is not None and pixels[-1] - pixels[0] == len(pixels) - 1:
            return self.whole_map[int(pixels[0]):int(pixels[-1]) + 1]  # in one piece already
        rows = floats(self.gathered[worker], len(pixels), gather.width)
        gather(pixels, rows.numpy())
        return rows


class ConvolutionStep:
    """The step of a convolution by GEMM, with dense evaluation of lanes that changed a lot."""

    def __init__(self, node: DeltaNode, filters: Filters, buffers: Buffers, finish: Finish,
                 workers: Workers, dense_fallback: bool) -> None:
        """Resolve buffers and tables."""
        self.node, self.filters, self.finish, self.workers = node, filters, finish, workers
        self.finder = CandidateFinder(node, buffers)
        self.phases = [PhaseRows(node, phase, buffers, workers.threads)
                       for phase in filters.phases]
        self.value = buffers.inputs[node.about.args[0].index].value
        self.rows = chunk_rows(row_width(node) + finish.out.channels)
        self.dense_from = DENSE_SHARE * finish.out.pixels if dense_fallback else float("inf")
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
        scheduled = 0
        start = 0
        for lane, count in enumerate(found.counts):
            if count >= self.dense_from:
                self._compute_densely(lane, found.pixels[start:start + count])
                scheduled += self.node.dense_multiply_adds
            start += count
        sparse = self._sparse_pixels(found)
        self._compute_rows(sparse)
        self.finish.end()
        return Work(found.total, scheduled + len(sparse) * self.node.about.multiply_adds)

    def _sparse_pixels(self, found: Candidates) -> np.ndarray:
        """Return the candidates of the lanes that are not computed whole."""
        if max(found.counts) < self.dense_from:
            return found.pixels
        lanes = np.split(found.pixels, np.cumsum(found.counts)[:-1])
        return np.concatenate([lanes[0][:0]] + [
            pixels for pixels in lanes if len(pixels) < self.dense_from])

    def _compute_rows(self, pixels: np.ndarray) -> None:
        if len(pixels) == 0:
            return
        share = len(pixels) * self.node.about.multiply_adds > SHARED_MULTIPLY_ADDS
        pixels, bounds = self._by_phase(pixels)
        parts = [(phase, part) for phase, start, stop in
                 zip(self.phases, bounds[:-1], bounds[1:], strict=True) if stop > start
                 for part in split(start, stop, self.rows, self.workers.threads if share else 1)]

        def part(worker: int, index: int) -> None:
            phase, (start, stop) = parts[index]
            chunk = pixels[start:stop]
            self.finish.rows(worker, phase(worker, chunk), chunk)

        self.workers.run(part, len(parts), share)

    def _by_phase(self, pixels: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Sort pixels by phase, where there are several."""
        if self.sorted is None:
            return pixels, [0, len(pixels)]
        bounds = np.zeros(len(self.phases) + 1, np.int64)
        sort_by_phase(pixels, self.finish.out.height, self.finish.out.width, *self.filters.period,
                      self.sorted, bounds)
        return self.sorted, bounds.tolist()

    def _compute_densely(self, lane: int, pixels: np.ndarray) -> None:
        params = self.node.about.params
        x = self.value[lane:lane + 1]
        if not is_transposed(self.node):
            new = F.conv2d(x, self.filters.dense, None, params["stride"], params["padding"],
                           params["dilation"], params["groups"])
        else:
            new = F.conv_transpose2d(
                x, self.filters.dense, None, params["stride"], params["padding"],
                params["output_padding"], params["groups"], params["dilation"])
        rows = new.permute(0, 2, 3, 1).reshape(-1, new.shape[1]).numpy()
        first = lane * self.finish.out.pixels
        parts = split(0, len(pixels), MOST_DENSE_ROWS, self.workers.threads)

        def part(worker: int, index: int) -> None:
            self.finish.rows(worker, rows, pixels[slice(*parts[index])], first)

        self.workers.run(part, len(parts))



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

