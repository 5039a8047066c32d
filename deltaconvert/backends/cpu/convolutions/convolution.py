"""Convolutions, grouped and transposed ones too: rows of neighbourhoods times a filter.

Where all of a lane changes, its rows mostly take no longer than the library's own convolution of
the whole lane and the passes behind it (docs/performance.md); where they do, see `fallback`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import Entry, entry, loop
from deltaconvert.backends.cpu.compiling.native import (
    Entries,
    Floats3,
    Ints,
    Longs,
    Longs2,
    Longs3,
    Longs4,
    Numbers,
    Numbers3,
    call,
    layout,
    read,
    take,
)
from deltaconvert.backends.cpu.compiling.vectors import BLOCK
from deltaconvert.backends.cpu.convolutions import winograd
from deltaconvert.backends.cpu.convolutions.addresses import Source, find_rows, source_of
from deltaconvert.backends.cpu.convolutions.depthwise import FILTER, Depthwise
from deltaconvert.backends.cpu.convolutions.few import multiply_few
from deltaconvert.backends.cpu.convolutions.filters import (
    PIECE,
    Filters,
    Phase,
    argument,
    is_depthwise,
    is_transposed,
    row_size,
    weight_refusal,
)
from deltaconvert.backends.cpu.convolutions.kernel import PANEL, multiply_rows
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import Head
from deltaconvert.backends.cpu.frames.lists import footprints_of, head_of, list_scratch
from deltaconvert.backends.cpu.frames.parts import (
    DONE,
    GRAIN,
    GROUPS,
    MOST,
    TAKEN,
    Parts,
    divide,
    progress_of,
    take_pixels,
)
from deltaconvert.backends.cpu.frames.steps import CompiledStep, row_scratch
from deltaconvert.backends.cpu.maps.flat import flat, flat_map, ints, like, longs, rows_of
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of, finish_rows
from deltaconvert.backends.cpu.rows.stencil import rows_with_room, stencil_of
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode, Slot

MULTIPLY_ADDS_A_NS = 50
# What a worker reads of a filter that no cache near to it holds.
_FILTER_BYTES_A_NS = 14
# A product of so few rows is bound by reading its weights, so workers share its columns.
MOST_ROWS_BY_COLUMNS = 96
# Numbers that a chunk of rows and its results take, of the second cache's quarter of a million.
CHUNK_NUMBERS = 120_000
_NONE = np.zeros(0, np.int32)
_TILES = -1  # instead of groups of columns


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
        return [*list_scratch(node),
                row_scratch("new", rows_with_room(shape[1]), shape[1], workers)]
    rows = product_rows(shape[1])
    segments, copied = row_size(node)
    scratch = [*list_scratch(node), row_scratch("new", rows, shape[1] + PANEL, workers),
               row_scratch("addresses", workers * rows, 2 * segments, workers),
               row_scratch("copies", rows, copied, workers)]
    scratch += winograd.plan(node, workers)
    if is_transposed(node):
        scratch.append(Scratch("cpu.phases", 4 * int(np.prod(node.about.output.mask_shape))))
    return scratch


def product_rows(columns: int) -> int:
    """Return how many rows are multiplied and finished before the next, whole blocks.

    So many that a piece of the filter is read for many rows, and so few that their numbers of
    that piece and their results stay in the second cache.
    """
    return max(CHUNK_NUMBERS // (PIECE + columns) // BLOCK, 1) * BLOCK


class Product(NamedTuple):
    """The pixels of one phase.

    Args:
        parts: of the phase.
        source: where its rows lie.
        pieces, filters, panels: see `multiply_rows`.
        numbers, columns: see `multiply_few`; no columns where these are many.
        new: float32 ``[workers, rows, columns]``.
        addresses: int64 ``[workers, workers * blocks, segments, BLOCK]``.
        copies: float32 ``[workers, rows, numbers]``, for lines of taps.
    """

    parts: Parts
    source: Source
    pieces: Longs2
    filters: Numbers
    panels: Longs3
    numbers: int
    columns: int
    new: Floats3
    addresses: Longs4
    copies: Numbers3


class Convolution(NamedTuple):
    """A convolution by products.

    Args:
        parts, ending: of its step.
        phases: addresses of `Product`.
        period: int64 ``[2]``, of the phases in height and width.
        height, width: of a lane of the output.
        sorted: int32, the candidates phase by phase; empty where there is one phase.
        tilings: addresses of `winograd.Tiling`, one a phase, where tiles are a way to compute.
        prepare, work: addresses of entries: the other way.
    """

    parts: Parts
    ending: Ending
    phases: Longs
    period: Longs
    height: int
    width: int
    sorted: Ints
    tilings: Longs
    prepare: int
    work: int


_PRODUCT, _PRODUCT16 = layout(Product), layout(Product, types.uint16)
_CONVOLUTION, _CONVOLUTION16 = layout(Convolution), layout(Convolution, types.uint16)


def bind(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a convolution."""
    begin = head(node, filters, buffers, engine)
    return CompiledStep(node, engine, begin, *way(node, filters, buffers, engine, begin))


def head(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine) -> Head:
    """Return the head of its step."""
    if filters.depthwise is not None:
        return head_of(node, buffers, engine, 0.02 * filters.depthwise.numel() + 20,
                       buffers.output.mask.numel())
    return head_of(node, buffers, engine, node.about.multiply_adds / MULTIPLY_ADDS_A_NS + 20,
                   product_rows(flat_map(buffers.output.value).channels), BLOCK,
                   sum(phase.filters.nbytes for phase in filters.phases) / _FILTER_BYTES_A_NS)


def way(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine, head: Head
        ) -> tuple[Entry, Depthwise | Convolution, Entry | None]:
    """Return what computes the candidates of a head's parts: work, task and preparation."""
    if filters.depthwise is not None:
        return _depthwise(node, filters.depthwise, filters.bias, buffers, engine, head)
    out = flat_map(buffers.output.value)
    several = len(filters.phases) > 1
    order = ints(buffers.scratch["cpu.phases"], out.lanes * out.pixels) if several else _NONE
    phases = [engine.keep(_product(node, phase, buffers, engine, head.parts, order)).address
              for phase in filters.phases]
    few = all(phase.columns for phase in filters.phases)
    prepare, work = PREPARE.of(out.data), (CONVOLVE_FEW if few else CONVOLVE).of(out.data)
    tilings = np.zeros(0, np.int64)
    other = work
    if filters.tiled:
        prepare, work = _prepare_tiles, _convolve_tiles
        tilings = winograd.bind(node, filters, buffers, engine)
    task = Convolution(
        head.parts, _ending(node, filters.bias, buffers, head, engine),
        np.array(phases, np.int64), np.array(filters.period, np.int64), out.height, out.width,
        order, tilings, PREPARE.of(out.data).address, other.address)
    return work, task, prepare


def _depthwise(node: DeltaNode, weight: Tensor, bias: Tensor | None, buffers: Buffers,
               engine: Engine, head: Head) -> tuple[Entry, Depthwise, None]:
    source, channels = node.about.args[0].index, weight.shape[1]
    footprint = node.about.footprints[source]
    stencil = stencil_of(flat_map(buffers.inputs[source].value), footprint,
                         4 * channels * footprint.taps[1], 4 * channels)
    new = rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows_with_room(channels),
                  channels)
    task = Depthwise(head.parts, _ending(node, bias, buffers, head, engine), stencil, flat(weight),
                     new)
    return FILTER.of(stencil.data), task, None


def _ending(node: DeltaNode, bias: Tensor | None, buffers: Buffers, head: Head,
            engine: Engine) -> Ending:
    residual = argument(node, 3)
    added = buffers.inputs[residual.index].value if isinstance(residual, Slot) else None
    return ending_of(node, buffers, head, engine, bias=bias, residual=added,
                     activation=node.about.params.get("activation"))


def _product(node: DeltaNode, phase: Phase, buffers: Buffers, engine: Engine, parts: Parts,
             order: np.ndarray) -> Product:
    """Cut the footprint to the phase's taps; view the working memory."""
    source, channels = node.about.args[0].index, flat_map(buffers.output.value).channels
    rows, threads = product_rows(channels), engine.workers.threads
    if len(order):
        parts = Parts(order, np.zeros(1, np.int64), progress_of(threads))
    copied = phase.segments * phase.numbers if phase.lines else 0
    return Product(
        parts,
        source_of(flat_map(buffers.inputs[source].value), footprints_of(node)[source], phase.taps,
                  phase.lines),
        phase.pieces, phase.filters, phase.panels, phase.numbers, phase.columns,
        rows_of(buffers.scratch["cpu.new"], threads, rows, channels + PANEL),
        longs(buffers.scratch["cpu.addresses"], threads, threads * rows // BLOCK,
              phase.segments, BLOCK),
        like(phase.filters, buffers.scratch["cpu.copies"], threads, rows, copied))


@entry
def _prepare(address, workers):
    share(read(address, _CONVOLUTION), _PRODUCT, workers)


@entry
def _prepare16(address, workers):
    share(read(address, _CONVOLUTION16), _PRODUCT16, workers)


@entry
def _convolve(address, worker):
    multiply_phases(read(address, _CONVOLUTION), _PRODUCT, worker)


@entry
def _convolve16(address, worker):
    multiply_phases(read(address, _CONVOLUTION16), _PRODUCT16, worker)


@entry
def _prepare_tiles(address, workers):
    task = read(address, _CONVOLUTION)
    if begin_tiles(task, workers):
        task.parts.progress[GROUPS] = _TILES
    else:
        call(task.prepare, address, workers)


@entry
def _convolve_tiles(address, worker):
    task = read(address, _CONVOLUTION)
    if task.parts.progress[GROUPS] == _TILES:
        for phase in range(task.tilings.shape[0]):
            winograd.convolve_tiles(task.tilings[phase], task.ending, worker)
    else:
        call(task.work, address, worker)


@entry
def _convolve_few(address, worker):
    multiply_few_columns(read(address, _CONVOLUTION), _PRODUCT, worker)


@entry
def _convolve_few16(address, worker):
    multiply_few_columns(read(address, _CONVOLUTION16), _PRODUCT16, worker)


PREPARE, CONVOLVE = Entries(_prepare, _prepare16), Entries(_convolve, _convolve16)
CONVOLVE_FEW = Entries(_convolve_few, _convolve_few16)


@loop
def begin_tiles(task, workers):
    """Find the tiles of each phase; return whether they are to be computed."""
    pixels, phases = task.parts.pixels[:task.parts.listed[0]], task.tilings.shape[0]
    bounds = np.zeros(phases + 1, np.int64)
    if phases == 1:
        bounds[1] = pixels.shape[0]
    else:
        sort_by_phase(pixels, task.height, task.width, task.period[0], task.period[1],
                      task.sorted, bounds)
        pixels = task.sorted
    return winograd.begin(task.tilings, pixels, bounds, workers)


@loop
def share(task, kind, workers):
    """Sort the candidates by phase, where there are several; settle how they are shared."""
    whole, phases = task.parts, task.phases.shape[0]
    whole.progress[GROUPS] = 0
    if phases == 1:
        whole.progress[GROUPS] = column_groups(read(task.phases[0], kind), workers)
        whole.progress[DONE] = 0
        return
    bounds = np.zeros(phases + 1, np.int64)
    sort_by_phase(whole.pixels[:whole.listed[0]], task.height, task.width, task.period[0],
                  task.period[1], task.sorted, bounds)
    for phase in range(phases):
        parts = read(task.phases[phase], kind).parts
        parts.listed[0] = bounds[phase + 1]
        divide(parts, bounds[phase], bounds[phase + 1], whole.progress[GRAIN],
               whole.progress[MOST], workers)


@loop
def column_groups(product, workers):
    """Return in how many parts to share a product's columns; 0 to share its rows.

    Few rows are read quickly, and many columns are many weights: each worker then reads a
    part of these, for all rows.
    """
    found, panels = product.parts.listed[0], product.panels.shape[1]
    room = product.new.shape[0] * product.new.shape[1]
    if workers == 1 or product.source.lines or product.panels.shape[0] > 1:
        return 0
    if found > min(room, MOST_ROWS_BY_COLUMNS) or panels < 2 * workers:
        return 0
    return 2 * workers


@loop
def multiply_phases(task, kind, worker):
    """Compute and finish parts of all phases until all are taken."""
    for phase in range(task.phases.shape[0]):
        product = read(task.phases[phase], kind)
        if task.phases.shape[0] == 1 and product.parts.progress[GROUPS] > 0:
            by_columns(product, task.ending, worker)
        else:
            by_rows(product, task.ending, worker)


@loop
def by_rows(product, ending, worker):
    """Compute and finish rows until all are taken."""
    new, addresses, copies = product.new[worker], product.addresses[worker], product.copies[worker]
    while True:
        pixels = take_pixels(product.parts, worker)
        if pixels.shape[0] == 0:
            return
        find_rows(product.source, pixels, copies, addresses)
        multiply_rows(addresses, pixels.shape[0], product.pieces, product.filters, product.panels,
                      0, product.panels.shape[1], new)
        finish_rows(new, pixels, ending, worker)


@loop
def multiply_few_columns(task, kind, worker):
    """Do the same where columns are few."""
    for phase in range(task.phases.shape[0]):
        product = read(task.phases[phase], kind)
        new, addresses = product.new[worker], product.addresses[worker]
        while True:
            pixels = take_pixels(product.parts, worker)
            if pixels.shape[0] == 0:
                break
            find_rows(product.source, pixels, product.copies[worker], addresses)
            multiply_few(addresses, pixels.shape[0], product.numbers, product.columns,
                         product.filters, new)
            finish_rows(new, pixels, task.ending, worker)


@loop
def by_columns(product, ending, worker):
    """Compute columns of all rows until all are taken; who is last finishes the rows."""
    progress = product.parts.progress
    pixels = product.parts.pixels[:product.parts.listed[0]]
    groups, panels = progress[GROUPS], product.panels.shape[1]
    addresses = product.addresses[worker]
    new = product.new.reshape(-1, product.new.shape[2])
    known = False
    while True:
        group = take(progress.ctypes.data + 8 * TAKEN, 1)
        if group >= groups:
            return
        if not known:
            find_rows(product.source, pixels, product.copies[worker], addresses)
            known = True
        multiply_rows(addresses, pixels.shape[0], product.pieces, product.filters, product.panels,
                      group * panels // groups, (group + 1) * panels // groups, new)
        if take(progress.ctypes.data + 8 * DONE, 1) == groups - 1:
            finish_rows(new, pixels, ending, worker)


@loop
def sort_by_phase(pixels, height, width, period_y, period_x, out, bounds):
    """Write pixels, ascending, to ``out``, phase by phase; phase ``i`` ends at ``bounds[i + 1]``.

    Divisions are slow: neighbours have neighbouring phases.
    """
    at = np.zeros(bounds.shape[0], np.int64)
    for placing in range(2):
        end, down, along, before = 0, 0, 0, np.int64(-2)
        for i in range(pixels.shape[0]):
            pixel = np.int64(pixels[i])
            if pixel >= end:
                line = pixel // width
                end, down = (line + 1) * width, line % height % period_y * period_x
                along = (pixel - line * width) % period_x
            elif pixel == before + 1:
                along = along + 1 if along + 1 < period_x else 0
            else:
                along = (along + pixel - before) % period_x
            before = pixel
            if placing:
                out[at[down + along]] = pixel
                at[down + along] += 1
            else:
                bounds[down + along + 1] += 1
        if not placing:
            for i in range(bounds.shape[0] - 1):
                at[i] = bounds[i]
                bounds[i + 1] += bounds[i]
