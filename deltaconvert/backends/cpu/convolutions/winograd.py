"""Convolutions by Winograd's F(2x2, 3x3) and F(2x2, 2x2), over the tiles that hold a candidate.

A tile is two by two output pixels. They read a patch ``d`` of four by four input pixels, and with
the filter ``g``, for every pair of channels,

    tile = A^T ((G g G^T) * (B^T d B)) A        (* number by number)

takes 16 multiply-adds for four pixels, where the definition takes 36 (Winograd 1980; Lavin and
Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Summed over the input's
channels, each of the 16 places is a product of matrices: tiles times filters.

So are computed 3x3 taps of stride 1. Where they are dilated, so is a tile: its second row and
column are as far from the first as taps are from each other. A transposed convolution of 4x4 taps
and stride 2 is four convolutions of 2x2 taps, one for each phase: there a patch is three by three,
and a tile takes 9 multiply-adds instead of 16. Its tiles are two by two neighbours of a phase, in
the *plane* of the phase's pixels alone.

Tiles lie where candidates are: see `tiles`.

An output pixel depends on its own nine taps and on no other number of the patch, term by term:
with ``y0 = m0 + m1 + m2`` and ``y1 = m1 - m2 - m3``, ``y0`` never meets ``d3``, nor ``y1`` ``d0``
(and with ``y0 = m0 + m1`` and ``y1 = m1 - m2``, ``y0`` never meets ``d2``, nor ``y1`` ``d0``).
So its rounding error is one of its own neighbourhood, zeros all around give zero, and what is not
a number stays with its readers. It may be another one though (infinity minus infinity), and large
numbers may overflow on the way: tiles whose result is not finite are computed by the definition.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes2,
    Floats,
    Floats2,
    Floats3,
    Ints2,
    Longs,
    Longs2,
    Longs3,
    layout,
    read,
    take,
)
from deltaconvert.backends.cpu.compiling.vectors import BLOCK, WIDTH
from deltaconvert.backends.cpu.convolutions.addresses import Source, find_rows, source_of
from deltaconvert.backends.cpu.convolutions.filters import (
    Filters,
    Phase,
    Tiled,
    is_transposed,
    tiled_channels,
)
from deltaconvert.backends.cpu.convolutions.kernel import PANEL, multiply_block, multiply_rows
from deltaconvert.backends.cpu.convolutions.tiles import find_tiles
from deltaconvert.backends.cpu.convolutions.transforms import HELD, from_places, to_places
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.maps.flat import flat_map, ints, rows_of
from deltaconvert.backends.cpu.rows.finish import finish_rows
from deltaconvert.footprint import Footprint
from deltaconvert.nodes import DeltaNode

# Tiles that are transformed, multiplied and finished before the next: whole blocks.
TILES = 4 * BLOCK
# From so many blocks on, chunks are whole ones; of fewer they would be too unequal.
_MANY_BLOCKS = 20
# Numbers from a place to the next differ from a multiple of a page by this, or the 16 places of a
# tile would share a few lines of the first cache.
APART, PAGE = 64, 1024
# A filter of so many numbers at a place is read once for all workers, each its columns, as long
# as there are few chunks; else each worker would read all of it from memory for a few tiles.
LARGE_PRODUCT, FEW_CHUNKS = 256 * 256, 4
# To read a filter, mostly from memory, takes as long as a product of so many rows with it: where
# there are few, nine taps are sooner there than sixteen places.
_FILTER_ROWS = 8


class Definition(NamedTuple):
    """The filter for `kernel.multiply_rows`, for pixels one by one."""

    pieces: Longs2
    filters: Floats
    panels: Longs3


class Layer(NamedTuple):
    """A phase, as far as it does not change from frame to frame.

    Args:
        side: places along a side: 4, or 3.
        source: the map, and the taps of every pixel of the plane.
        phase: int64 ``[6]``: where the plane lies in the output: the first row and column, from a
            row and a column to the next, and the output's height and width.
        down, across: from a row and a column of a tile to its second.
        channels: of the output.
        group_in, group_out: channels of a group.
        gain: of these.
        bounds: int64 ``[P + 1]``: where the filter is cut along a group's input channels.
        filters, panels: transformed; a panel holds the places one behind the other, each
            ``[channels of a group, columns]``; ``panels`` as in `kernel.multiply_rows`.
        by_definition: the same for pixels one by one.
    """

    side: int
    source: Source
    phase: Longs
    down: int
    across: int
    channels: int
    group_in: int
    group_out: int
    gain: float
    bounds: Longs
    filters: Floats
    panels: Longs3
    by_definition: Definition


class Rows(NamedTuple):
    """The results of chunks: of each worker's, and, where workers share chunks, of each phase's.

    Args:
        new: float32 ``[slots, 4 * TILES + BLOCK, C_out]`` and `PANEL` more columns: a row a
            candidate, and memory for a block of others.
        pixels: int32 ``[slots, 4 * TILES]``: the candidates.
        spoiled: uint8 ``[slots, TILES]``: tiles whose result is not finite; cleared after use.
    """

    new: Floats3
    pixels: Ints2
    spoiled: Bytes2


class Memory(NamedTuple):
    """What a worker has for itself.

    Args:
        patches: float32, flat: ``[places, TILES, C_in]``, transformed, the places apart.
        patches_place, patches_row: bytes from a place to the next, and from a tile.
        products: likewise ``[places, TILES, C_out]`` and a few more columns.
        products_place, products_row: the same of these.
        rows: int64 ``[TILES]``: addresses of the first place's patches.
        table: int64 ``[places]``, addresses.
        copies, addresses: see `addresses.find_rows`, for one block.
        slot: its own, of `Rows`.
    """

    patches: Floats
    patches_place: int
    patches_row: int
    products: Floats
    products_place: int
    products_row: int
    rows: Longs
    table: Longs
    copies: Floats2
    addresses: Longs3
    slot: int


class Tiling(NamedTuple):
    """A phase of a convolution by tiles.

    Args:
        layer: what is computed.
        rows: where.
        first_slot: of those that are its own, where workers share chunks.
        memory: addresses of `Memory`, one a worker.
        tiles: int32 ``[tiles, 2]``, see `find_tiles`.
        frame: int64 ``[5 + FEW_CHUNKS]``, what the workers share in a frame: the tiles, their
            chunks, what the tiles of a chunk are a multiple of, the parts of the output's columns
            (each part of each chunk is one worker's), how many are handed out, and how many of
            each chunk are computed.
    """

    layer: Layer
    rows: Rows
    first_slot: int
    memory: Longs
    tiles: Ints2
    frame: Longs


_TOTAL, _CHUNKS, _GRAIN, _PARTS, _TAKEN, _DONE = range(6)
_MEMORY, _TILING = layout(Memory), layout(Tiling)


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the memory for tiles, where a node may be computed by them."""
    if tiled_channels(node) is None:
        return []
    shape_in, shape_out = node.about.inputs[0].shape, node.about.output.shape
    assert shape_in is not None
    assert shape_out is not None
    phases, places = (4, 9) if is_transposed(node) else (1, 16)
    slots = workers + phases * FEW_CHUNKS
    return [Scratch("cpu.tiles", 8 * phases * _most_tiles(node, phases)),
            Scratch("cpu.rows", 4 * slots * (HELD * TILES + BLOCK) * (shape_out[1] + PANEL)),
            Scratch("cpu.patches", 4 * workers * places * _place(shape_in[1])),
            Scratch("cpu.products", 4 * workers * places * _place(shape_out[1] + WIDTH))]


def _most_tiles(node: DeltaNode, phases: int) -> int:
    """Return how many tiles a phase may have."""
    lanes, *sides = node.about.output.mask_shape
    if phases > 1:  # a tile is of every other of the output's pixels
        return lanes * math.prod(-(-size // 4) for size in sides)
    return lanes * math.prod(
        sum(-(-len(range(first, size, apart)) // 2) for first in range(apart))
        for size, apart in zip(sides, node.about.params["dilation"], strict=True))


def _place(columns: int) -> int:
    """Return the numbers from a place to the next."""
    numbers = TILES * columns
    return numbers + (APART - numbers) % PAGE


def bind(node: DeltaNode, filters: Filters, buffers: Buffers, engine: Engine) -> np.ndarray:
    """Return the addresses of a `Tiling` for each phase."""
    out, scratch, threads = flat_map(buffers.output.value), buffers.scratch, engine.workers.threads
    index, phases = node.about.args[0].index, len(filters.phases)
    value, footprint = flat_map(buffers.inputs[index].value), node.about.footprints[index]
    slots, most = threads + phases * FEW_CHUNKS, _most_tiles(node, phases)
    rows = Rows(
        rows_of(scratch["cpu.rows"], slots, HELD * TILES + BLOCK, out.channels + PANEL),
        np.zeros((slots, HELD * TILES), np.int32), np.zeros((slots, TILES), np.uint8))
    tiles = ints(scratch["cpu.tiles"], 2 * phases * most).reshape(phases, most, 2)
    memory = np.array([
        engine.keep(_memory(filters.tiled[0], value.channels, out.channels, scratch, worker,
                            filters.phases[0])).address
        for worker in range(threads)], np.int64)
    made, (down, across) = [], node.about.params["dilation"]
    for i, (phase, tiled) in enumerate(zip(filters.phases, filters.tiled, strict=True)):
        source = source_of(value, _plane(footprint, phase, filters.period), phase.taps,
                           phase.lines)
        place = np.array([*phase.place, *filters.period, out.height, out.width], np.int64)
        layer = Layer(tiled.side, source, place, down, across, out.channels, *tiled.channels,
                      gain(*tiled.channels, tiled.side - 1), tiled.bounds, tiled.filters,
                      tiled.panels, Definition(phase.pieces, phase.filters, phase.panels))
        made.append(engine.keep(Tiling(layer, rows, threads + i * FEW_CHUNKS, memory, tiles[i],
                                       np.zeros(_DONE + FEW_CHUNKS, np.int64))).address)
    return np.array(made, np.int64)


def _plane(footprint: Footprint, phase: Phase, period: tuple[int, int]) -> Footprint:
    """Return what the pixels of one phase read."""
    return Footprint(footprint.rows[phase.place[0]::period[0]],
                     footprint.cols[phase.place[1]::period[1]], footprint.size_in)


def _memory(tiled: Tiled, channels_in: int, channels_out: int, scratch: Mapping[str, Tensor],
            worker: int, phase: Phase) -> Memory:
    places = tiled.side * tiled.side
    patches = _places(scratch["cpu.patches"], worker, places, channels_in)
    products = _places(scratch["cpu.products"], worker, places, channels_out + WIDTH)
    rows = patches[0].ctypes.data + patches[2] * np.arange(TILES)
    return Memory(*patches, *products, rows, np.zeros(places, np.int64),
                  np.zeros((BLOCK, phase.segments * phase.numbers if phase.lines else 0),
                           np.float32),
                  np.zeros((1, phase.segments, BLOCK), np.int64), worker)


def _places(scratch: Tensor, worker: int, places: int, columns: int
            ) -> tuple[np.ndarray, int, int]:
    """Return a worker's memory for the places of its tiles, and its steps in bytes."""
    place = _place(columns)
    whole = rows_of(scratch, worker + 1, places * place)
    return whole[worker], 4 * place, 4 * columns


@loop
def begin(tilings, pixels, bounds, workers):
    """Take up a frame's candidates; return whether they are better computed by tiles.

    Args:
        tilings: addresses of `Tiling`, one a phase.
        pixels: int32, the candidates, phase by phase; those of several phases are overwritten.
        bounds: int64 ``[phases + 1]``: where each phase's begin.
        workers: how many there will be.
    """
    phases, total, found = tilings.shape[0], 0, bounds[tilings.shape[0]]
    gain = 0.0
    for i in range(phases):
        tiling = read(tilings[i], _TILING)
        layer, own = tiling.layer, pixels[bounds[i]:bounds[i + 1]]
        gain = layer.gain
        if phases > 1:
            to_plane(layer, own)
        tiling.frame[:] = 0
        tiling.frame[_TOTAL] = find_tiles(
            own, layer.source.rows.shape[0], layer.source.cols.shape[0], layer.down,
            layer.across, tiling.tiles)
        total += tiling.frame[_TOTAL]
    if total + phases * _FILTER_ROWS >= gain * (found + phases * _FILTER_ROWS):
        return False
    for i in range(phases):
        tiling = read(tilings[i], _TILING)
        cut(tiling.layer, tiling.frame, workers)
    return True


@loop
def to_plane(layer, pixels):
    """Turn pixels of the output into those of the phase's plane."""
    height, width = layer.source.rows.shape[0], layer.source.cols.shape[0]
    down, across, height_out, width_out = (
        layer.phase[2], layer.phase[3], layer.phase[4], layer.phase[5])
    for i in range(pixels.shape[0]):
        row, x = pixels[i] // width_out, pixels[i] % width_out
        pixels[i] = (row // height_out * height + row % height_out // down) * width + x // across


@loop
def to_output(layer, pixels):
    """Turn them back."""
    height, width = layer.source.rows.shape[0], layer.source.cols.shape[0]
    first_row, first_column, down, across, height_out, width_out = (
        layer.phase[0], layer.phase[1], layer.phase[2], layer.phase[3], layer.phase[4],
        layer.phase[5])
    for i in range(pixels.shape[0]):
        row, x = pixels[i] // width, pixels[i] % width
        row = row // height * height_out + row % height * down + first_row
        pixels[i] = row * width_out + x * across + first_column


def gain(channels_in: int, channels_out: int, taps: int = 3) -> float:
    """Return how many tiles a candidate may be worth, where both are computed; see `begin`.

    A tile is sixteen products where a candidate is nine (or nine where it is four), and its
    numbers are transformed: in and back, that takes as long as four multiply-adds a number and
    place.

    Args:
        channels_in, channels_out: of a group.
        taps: along a side.
    """
    product = channels_in * channels_out
    return taps ** 2 * product / ((taps + 1) ** 2 * (product + 4 * (channels_in + channels_out)))


@loop
def cut(layer, frame, workers):
    """Settle how many chunks there are, and the parts of their columns.

    Chunks differ by a grain at most, and there are as many for each worker.
    """
    groups, panels, tiles = layer.panels.shape[0], layer.panels.shape[1], frame[_TOTAL]
    frame[_PARTS], chunks = 1, (tiles + TILES - 1) // TILES
    frame[_GRAIN] = BLOCK if tiles >= _MANY_BLOCKS * BLOCK else BLOCK // 3
    if (groups == 1 and workers > 1 and tiles <= FEW_CHUNKS * TILES
            and layer.group_in * layer.group_out >= LARGE_PRODUCT):
        frame[_PARTS] = min(workers, panels)
    elif workers > 1:
        chunks = (max(chunks, 2 * workers) + workers - 1) // workers * workers
    frame[_CHUNKS] = chunks


@loop
def convolve_tiles(address, ending, worker):
    """Compute and finish tiles, until all are taken."""
    tiling = read(address, _TILING)
    memory = read(tiling.memory[worker], _MEMORY)
    while True:
        slot, count = compute_next(tiling, memory)
        if count == 0:
            return
        finish_rows(tiling.rows.new[slot], tiling.rows.pixels[slot, :count], ending, worker)


@loop
def compute_next(tiling, memory):
    """Compute parts that nobody has taken, up to one that makes a chunk whole.

    Returns:
        Where its rows are in `Rows`, and how many; 0 at the end.
    """
    layer, rows, frame = tiling.layer, tiling.rows, tiling.frame
    panels, chunks, parts, grain = layer.panels, frame[_CHUNKS], frame[_PARTS], frame[_GRAIN]
    grains = (frame[_TOTAL] + grain - 1) // grain
    while True:
        part = take(frame.ctypes.data + 8 * _TAKEN, 1)
        chunk, part = part // parts, part % parts
        if chunk >= chunks:
            return 0, 0
        start = grains * chunk // chunks * grain
        stop_tile = min(grains * (chunk + 1) // chunks * grain, frame[_TOTAL])
        if start == stop_tile:
            continue
        tiles = tiling.tiles[start:stop_tile]
        slot = memory.slot if parts == 1 else tiling.first_slot + chunk
        first = panels.shape[1] * part // parts
        stop = panels.shape[1] * (part + 1) // parts
        transform_patches(layer, tiles, memory)
        multiply_places(layer, first, stop, tiles.shape[0], memory)
        channel = panels[0, first, 1]
        channels = (layer.channels if part + 1 == parts else panels[0, stop, 1]) - channel
        transform_back(layer.side, tiles, channel, channels, memory, rows.new[slot],
                       rows.spoiled[slot])
        if parts == 1 or take(frame.ctypes.data + 8 * (_DONE + chunk), 1) == parts - 1:
            return slot, gather_candidates(layer, tiles, memory, rows, slot)


@loop
def transform_patches(layer, tiles, memory):
    """Write ``B^T d B`` of each tile's patch, channel by channel; see `Memory`."""
    source, side, table = layer.source, layer.side, memory.table
    height_out, width_out, last = source.rows.shape[0], source.cols.shape[0], layer.side - 1
    for i in range(tiles.shape[0]):
        pixel = np.int64(tiles[i, 0])
        x = pixel % width_out
        y = pixel // width_out % height_out
        first = pixel // (width_out * height_out) * source.height
        for j in range(side):  # what lies below or beside the map is read by no pixel
            line, below = np.int32(-1), j // last
            if y + below * layer.down < height_out:
                line = source.rows[y + below * layer.down, j - below]
            for k in range(side):
                column, beside = np.int32(-1), k // last
                if x + beside * layer.across < width_out:
                    column = source.cols[x + beside * layer.across, k - beside]
                where = source.zeros.ctypes.data
                if line >= 0 and column >= 0:
                    place = (first + line) * source.width + column
                    where = source.data.ctypes.data + 4 * source.step * place
                table[side * j + k] = where
        to_places(side, table.ctypes.data, source.channels,
                  memory.patches.ctypes.data + i * memory.patches_row, memory.patches_place)


@loop
def multiply_places(layer, first, stop, count, memory):
    """Multiply the transformed patches of some tiles with some panels, place by place."""
    bounds, panels, places = layer.bounds, layer.panels, layer.side * layer.side
    for place in range(places):
        for group in range(panels.shape[0]):
            for part in range(bounds.shape[0] - 1):
                for q in range(first, stop):
                    column, channel = panels[group, q, 1], panels[group, q, 3] + bounds[part]
                    piece = _piece(layer, group, q, place, part)
                    ahead = piece
                    if q + 1 < stop:
                        ahead = _piece(layer, group, q + 1, place, part)
                    elif place + 1 < places:
                        ahead = _piece(layer, group, first, place + 1, part)
                    out = memory.products.ctypes.data + place * memory.products_place + 4 * column
                    for block in range((count + BLOCK - 1) // BLOCK):
                        multiply_block(
                            layer.filters, count - block * BLOCK, panels[group, q, 2],
                            memory.rows.ctypes.data + 8 * BLOCK * block, 1,
                            bounds[part + 1] - bounds[part],
                            place * memory.patches_place + 4 * channel, piece, ahead,
                            out + block * BLOCK * memory.products_row, memory.products_row,
                            part != 0)


@loop
def _piece(layer, group, q, place, part):
    """Return the address of a part of a panel at one place."""
    first = place * layer.bounds[-1] + layer.bounds[part]
    columns = layer.panels[group, q, 2] * WIDTH
    return layer.filters.ctypes.data + 4 * (layer.panels[group, q, 0] + first * columns)


@loop
def transform_back(side, tiles, channel, channels, memory, new, spoiled):
    """Write some channels of ``A^T m A`` to the rows of the candidates; note spoiled tiles."""
    table, at = memory.table, 0
    for i in range(tiles.shape[0]):
        for k in range(HELD):
            table[k] = new[new.shape[0] - 1, channel:].ctypes.data  # nobody's
            if tiles[i, 1] >> k & 1:
                table[k] = new[at, channel:].ctypes.data
                at += 1
        start = memory.products.ctypes.data + i * memory.products_row + 4 * channel
        if from_places(side, start, memory.products_place, channels, table.ctypes.data):
            spoiled[i] = 1


@loop
def gather_candidates(layer, tiles, memory, rows, slot):
    """List a chunk's candidates, compute those of spoiled tiles anew; return how many there are."""
    pixels, below, at = rows.pixels[slot], layer.down * layer.source.cols.shape[0], 0
    for i in range(tiles.shape[0]):
        before = at
        for k in range(HELD):
            if tiles[i, 1] >> k & 1:
                pixels[at] = tiles[i, 0] + k // 2 * below + k % 2 * layer.across
                at += 1
        if rows.spoiled[slot, i]:
            rows.spoiled[slot, i] = 0
            compute_by_definition(layer, pixels[before:at], memory, rows.new[slot], before)
    if layer.phase[2] > 1:
        to_output(layer, pixels[:at])
    return at


@loop
def compute_by_definition(layer, pixels, memory, new, first):
    """Compute up to a block of pixels tap by tap, into the rows from ``first`` on."""
    direct = layer.by_definition
    beside = new[new.shape[0] - BLOCK:]
    find_rows(layer.source, pixels, memory.copies, memory.addresses)
    multiply_rows(memory.addresses, pixels.shape[0], direct.pieces, direct.filters, direct.panels,
                  0, direct.panels.shape[1], beside)
    for i in range(pixels.shape[0]):
        for c in range(layer.channels):
            new[first + i, c] = beside[i, c]
