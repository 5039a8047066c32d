"""The dense fallback: where much of a lane is to be done, PyTorch convolves all of it.

Workers take bands of lines, so that what PyTorch gives is in a cache yet when the candidates among
it are finished like all rows. Other lanes are computed as without: their candidates are listed
apart.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import entry, loop
from deltaconvert.backends.cpu.compiling.native import (
    Floats3,
    Longs,
    Longs2,
    call,
    layout,
    read,
    take,
)
from deltaconvert.backends.cpu.convolutions import convolution
from deltaconvert.backends.cpu.convolutions.break_even import NEVER, of_this_machine
from deltaconvert.backends.cpu.convolutions.filters import Filters
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.parts import GRAIN, MOST, TAKEN, Parts, divide, progress_of
from deltaconvert.backends.cpu.frames.steps import CompiledStep, row_scratch
from deltaconvert.backends.cpu.maps.flat import flat_map, ints, rows_of
from deltaconvert.backends.cpu.rows.finish import Ending, finish_rows
from deltaconvert.nodes import DeltaNode
from deltaconvert.sharing import shared

# Of a whole lane; below, the calls of Python and PyTorch are most of what dense would take.
LEAST_NS = 100_000
BAND_NUMBERS = 1 << 17  # of a band's result, which then is in the second cache
_LANE, _FIRST, _LAST = range(3)


class Fallback(NamedTuple):
    """A convolution with two ways to compute a lane.

    Args:
        parts, ending: of its step.
        rest: the candidates of the lanes that go our way.
        limit: int64 ``[1]``: candidates of a lane from which it is dense.
        height, width: of a lane of the output.
        lines: of a band.
        lanes: int64 ``[1 + lanes]``: how many are dense in this frame, and which.
        beyond: see `CompiledStep.beyond`.
        convolve, told: address of what convolves a band, and int64 ``[workers, 3]``, where it is
            told lane, first line, and the one behind the last.
        bands: float32 ``[workers, lines * width, C]``, where it leaves them.
        prepare, work, task: addresses, of our way.
    """

    parts: Parts
    ending: Ending
    rest: Parts
    limit: Longs
    height: int
    width: int
    lines: int
    lanes: Longs
    beyond: Longs
    convolve: int
    told: Longs2
    bands: Floats3
    prepare: int
    work: int
    task: int


_FALLBACK = layout(Fallback)


def is_offered(node: DeltaNode) -> bool:
    """Whether a node has a second way: PyTorch rounds what is bfloat16 behind the convolution."""
    about = node.about
    if about.operator is None or about.operator.name != "conv2d":
        return False
    row_ns = about.multiply_adds / convolution.MULTIPLY_ADDS_A_NS + 20
    return about.output.dtype == torch.float32 and about.output.pixels * row_ns >= LEAST_NS


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the memory of the candidates that go our way, and of a band for every worker."""
    lanes, channels, height, width = node.about.output.shape or ()
    return [Scratch("cpu.rest", 4 * lanes * height * width),
            row_scratch("band", _lines(node, workers) * width, channels, workers)]


def _lines(node: DeltaNode, workers: int) -> int:
    _, channels, height, width = node.about.output.shape or ()
    return max(min(-(-height // workers), BAND_NUMBERS // (width * channels)), 1)


def bind(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a convolution, with a second way where that is ever faster."""
    share = break_even(node, filters, buffers, engine)
    if share > 1:
        return convolution.bind(node, filters, buffers, engine)
    limit = max(math.ceil(share * node.about.output.pixels), 1)
    return _bind(node, filters, buffers, engine, np.array([limit], np.int64))


def break_even(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine) -> float:
    """Return the share of a lane from which dense is faster; more than 1 for never.

    A kind that this machine has not seen is measured with this node, before its first frame:
    nothing of that frame is in its buffers yet.
    """
    if not buffers.state.fresh.all():
        return NEVER

    def ways() -> tuple[Callable[[], object], Callable[[], object]]:
        limit = np.zeros(1, np.int64)
        step = _bind(node, filters, buffers, Engine(engine.workers), limit)

        def run(of: int) -> None:
            limit[0] = of
            step()
            edge = buffers.output
            edge.mask.zero_()
            edge.tally[:] = 0

        return lambda: run(node.about.output.pixels + 1), lambda: run(1)

    known = of_this_machine(_split.folder)
    return known.share(_kind(node, engine.workers.threads), ways)


def save() -> None:
    """Keep what was measured for the next start."""
    of_this_machine(_split.folder).save()


def _kind(node: DeltaNode, threads: int) -> str:
    """Name the nodes that are alike enough to be measured once: sizes by powers of two."""
    params, weight = node.about.params, node.about.args[1]
    sides = [f"{a}x{b}" for a, b in (weight.shape[2:], params["stride"], params["dilation"])]
    channels_out, channels_in = ((n - 1).bit_length() for n in weight.shape[:2])
    pixels = node.about.output.pixels.bit_length() // 2
    return " ".join(map(str, (*sides, "groups" if params["groups"] > 1 else "one", channels_in,
                              channels_out, pixels, threads)))


def _bind(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine,
          limit: np.ndarray) -> CompiledStep:
    head, threads = convolution.head(node, filters, buffers, engine), engine.workers.threads
    out, lines = flat_map(buffers.output.value), _lines(node, threads)
    rest = Parts(ints(buffers.scratch["cpu.rest"], out.lanes * out.pixels), np.zeros(1, np.int64),
                 progress_of(threads))
    work, task, prepare = convolution.way(node, filters, buffers, engine,
                                          head._replace(parts=rest))
    bands = rows_of(buffers.scratch["cpu.band"], threads, lines * out.width, out.channels)
    told, beyond = np.zeros((threads, 3), np.int64), np.zeros(2, np.int64)
    whole = Fallback(
        head.parts, task.ending, rest, limit, out.height, out.width, lines,
        np.zeros(1 + out.lanes, np.int64), beyond,
        engine.callback(_Bands(node, buffers, told, bands)), told, bands,
        prepare.address if prepare else 0, work.address, engine.keep(task).address)
    return CompiledStep(node, engine, head, _evaluate, whole, _split, beyond)


_weights: WeakKeyDictionary[DeltaNode, Tensor] = WeakKeyDictionary()


def _laid_out(node: DeltaNode) -> Tensor:
    """Return the weight as maps lie, in one copy for all streams and programs."""
    if node not in _weights:
        weight = node.about.args[1].detach()
        _weights[node] = shared((_laid_out, weight), lambda: weight.clone(
            memory_format=torch.channels_last))
    return _weights[node]


class _Bands:
    """Convolves bands of lines.

    Args:
        node: the convolution.
        buffers: its edges.
        told: see `Fallback`.
        bands: written.
    """

    def __init__(self, node: DeltaNode, buffers: Buffers, told: np.ndarray,
                 bands: np.ndarray) -> None:
        """Keep what every band is convolved with."""
        params = node.about.params
        self.value = buffers.inputs[node.about.args[0].index].value
        self.weight = _laid_out(node)
        self.settings = params["stride"], (0, params["padding"][1]), params["dilation"], (
            params["groups"])
        reach = params["dilation"][0] * (self.weight.shape[2] - 1) + 1
        self.stride, self.padding, self.reach = params["stride"][0], params["padding"][0], reach
        self.told, self.bands = told, bands

    def __call__(self, worker: int) -> None:
        """Convolve the band that a worker is told."""
        lane, first, last = self.told[worker].tolist()
        top = first * self.stride - self.padding
        bottom = (last - 1) * self.stride - self.padding + self.reach
        height = self.value.shape[2]
        lines = self.value[lane:lane + 1, :, max(top, 0):max(min(bottom, height), 0)]
        above, below = min(bottom, 0) - top, bottom - max(top, height)
        if above > 0 or below > 0:
            lines = F.pad(lines, (0, 0, max(above, 0), max(below, 0)))
        with torch.autocast("cpu", enabled=False):
            new = F.conv2d(lines, self.weight, None, *self.settings)
        new = new.contiguous(memory_format=torch.channels_last)
        ctypes.memmove(self.bands[worker].ctypes.data, new.data_ptr(), new.nbytes)


@entry
def _split(address, workers):
    split(read(address, _FALLBACK), workers)


@entry
def _evaluate(address, worker):
    evaluate(read(address, _FALLBACK), worker)


@loop
def split(task, workers):
    """Settle which lanes are dense; list the candidates of the others."""
    plane, pixels = task.height * task.width, task.parts.pixels[:task.parts.listed[0]]
    first, others, dense, beyond = 0, 0, 0, 0
    for lane in range(task.lanes.shape[0] - 1):
        last = first_from(pixels, (lane + 1) * plane)
        if last - first >= task.limit[0]:
            task.lanes[1 + dense] = lane
            dense += 1
            beyond += plane - (last - first)
        else:
            task.rest.pixels[others:others + last - first] = pixels[first:last]
            others += last - first
        first = last
    task.lanes[0], task.rest.listed[0] = dense, others
    task.beyond[0] = beyond
    task.beyond[1] += beyond
    if others > 0:
        task.rest.progress[TAKEN] = 0
        progress = task.parts.progress
        divide(task.rest, 0, others, progress[GRAIN], progress[MOST], workers)
        if task.prepare != 0:
            call(task.prepare, task.task, workers)


@loop
def first_from(pixels, pixel):
    """Return where the first of ascending pixels is that is not before another."""
    low, high = 0, pixels.shape[0]
    while low < high:
        middle = (low + high) // 2
        if pixels[middle] < pixel:
            low = middle + 1
        else:
            high = middle
    return low


@loop
def evaluate(task, worker):
    """Have bands of the dense lanes convolved and finished until all are taken; then the rest."""
    pixels, told = task.parts.pixels[:task.parts.listed[0]], task.told[worker]
    bands = (task.height + task.lines - 1) // task.lines
    while True:
        band = take(task.parts.progress.ctypes.data + 8 * TAKEN, 1)
        if band >= task.lanes[0] * bands:
            break
        told[_LANE], told[_FIRST] = task.lanes[1 + band // bands], band % bands * task.lines
        told[_LAST] = min(told[_FIRST] + task.lines, task.height)
        line = told[_LANE] * task.height
        begin, end = (line + told[_FIRST]) * task.width, (line + told[_LAST]) * task.width
        own = pixels[first_from(pixels, begin):first_from(pixels, end)]
        if own.shape[0] > 0:
            call(task.convolve, 0, worker)
            new = task.bands[worker]
            for i in range(own.shape[0]):  # candidates, one behind the other
                if own[i] - begin != i:
                    new[i, :] = new[own[i] - begin, :]
            finish_rows(new, own, task.ending, worker)
    if task.rest.listed[0] > 0:
        call(task.work, task.task, worker)
