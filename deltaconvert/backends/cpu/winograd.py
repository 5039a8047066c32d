"""Convolutions of 3x3 taps by Winograd's F(2x2, 3x3), over the tiles that hold a candidate.

A tile is two by two output pixels. They read a patch ``d`` of four by four input pixels, and with
the filter ``g``, for every pair of channels,

    tile = A^T ((G g G^T) * (B^T d B)) A        (* number by number)

takes 16 multiply-adds for four pixels, where the definition takes 36 (Winograd 1980; Lavin and
Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Summed over the input's
channels, each of the 16 places is a product of matrices: tiles times filters.

Tiles lie where candidates are: a pair of rows begins at the first row that holds one, and a tile
at the first column. So blobs of a few pixels fill their tiles to 75 to 90 %.

An output pixel depends on its own nine taps and on no other number of the patch, term by term:
with ``y0 = m0 + m1 + m2`` and ``y1 = m1 - m2 - m3``, ``y0`` never meets ``d3``, nor ``y1`` ``d0``.
So its rounding error is one of its own neighbourhood, zeros all around give zero, and what is not
a number stays with its readers. It may be another one though (infinity minus infinity), and large
numbers may overflow on the way: tiles whose result is not finite are computed by the definition.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.addresses import Source, find_rows
from deltaconvert.backends.cpu.filters import PLACES, Phase, Tiled, tiled_channels
from deltaconvert.backends.cpu.finish import Finish, finish_rows
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.kernel import (
    BLOCK,
    PANEL,
    WIDTH,
    multiply_block,
    multiply_rows,
    take,
)
from deltaconvert.backends.cpu.maps import floats, ints
from deltaconvert.nodes import DeltaNode

# Tiles that are transformed, multiplied and finished before the next: whole blocks.
TILES = 4 * BLOCK
HELD = 4  # pixels of a tile
# Numbers from a place to the next differ from a multiple of a page by this, or the 16 places of a
# tile would share a few lines of the first cache.
APART, PAGE = 64, 1024
# A filter of so many numbers at a place is read once for all workers, each its columns, as long
# as there are few chunks; else each worker would read all of it from memory for a few tiles.
LARGE_PRODUCT, FEW_CHUNKS = 256 * 256, 4


def pays(pixels: int, tiles: int, channels: tuple[int, int]) -> bool:
    """Return whether so many tiles take less time than their candidates one by one.

    Times are in multiply-adds. To transform a number, in and back, takes as long as 64. To read
    a filter, mostly from memory, takes as long as a product of 8 rows with it: where there are
    few, nine taps are sooner there than sixteen places.

    Args:
        pixels: candidates.
        tiles: that hold them.
        channels: of a group, in and out.
    """
    product = channels[0] * channels[1]
    return PLACES * (product + 4 * sum(channels)) * (tiles + 8) < 9 * product * (pixels + 8)


class Layer(NamedTuple):
    """What does not change from frame to frame.

    Args:
        source: the map, and the nine taps of every output pixel.
        channels: of the output.
        bounds: int64 ``[P + 1]``: where the filter is cut along a group's input channels.
        filters, panels: transformed; a panel holds the 16 places one behind the other, each
            ``[channels of a group, columns]``; ``panels`` as in `kernel.multiply_rows`.
        by_definition: pieces, filters and panels of `kernel.multiply_rows`.
    """

    source: Source
    channels: int
    bounds: np.ndarray
    filters: np.ndarray
    panels: np.ndarray
    by_definition: tuple[np.ndarray, np.ndarray, np.ndarray]


class Frame(NamedTuple):
    """What the workers share in a frame.

    Args:
        tiles: int32 ``[tiles, 2]``, see `find_tiles`.
        count: tiles of a chunk.
        parts: of the output's columns; each part of each chunk is one worker's.
        taken: int64 ``[1]``: parts handed out.
        done: int64 ``[FEW_CHUNKS]``: parts of each chunk that are computed.
    """

    tiles: np.ndarray
    count: int
    parts: int
    taken: np.ndarray
    done: np.ndarray


class Rows(NamedTuple):
    """The results of chunks: of each worker's, or, where workers share a chunk, of each chunk.

    Args:
        new: float32 ``[slots, 4 * TILES + BLOCK, C_out]`` and `PANEL` more columns: a row a
            candidate, and memory for a block of others.
        pixels: int32 ``[slots, 4 * TILES]``: the candidates.
        spoiled: uint8 ``[slots, TILES]``: tiles whose result is not finite; cleared after use.
    """

    new: np.ndarray
    pixels: np.ndarray
    spoiled: np.ndarray


class Memory(NamedTuple):
    """What a worker has for itself.

    Args:
        patches: float32 ``[16, TILES, C_in]``, transformed.
        rows: int64 ``[TILES]``: addresses of the first place's rows.
        products: float32 ``[16, TILES, C_out]`` and a few more columns.
        table: int64 ``[16]``, addresses.
        copies, addresses: see `addresses.find_rows`, for one block.
        slot: its own, of `Rows`.
    """

    patches: np.ndarray
    rows: np.ndarray
    products: np.ndarray
    table: np.ndarray
    copies: np.ndarray
    addresses: np.ndarray
    slot: int


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the memory for tiles, where a node may be computed by them."""
    if tiled_channels(node) is None:
        return []
    lanes, height, width = node.about.output.mask_shape
    shape_in, shape_out = node.about.inputs[0].shape, node.about.output.shape
    assert shape_in is not None
    assert shape_out is not None
    slots = max(workers, FEW_CHUNKS)
    wanted = [Scratch("cpu.tiles", 8 * lanes * -(-height // 2) * -(-width // 2)),
              Scratch("cpu.rows", 4 * slots * (HELD * TILES + BLOCK) * (shape_out[1] + PANEL))]
    for w in range(workers):
        wanted += [Scratch(f"cpu.patches.{w}", 4 * PLACES * _place(shape_in[1])),
                   Scratch(f"cpu.products.{w}", 4 * PLACES * _place(shape_out[1] + WIDTH))]
    return wanted


def _place(columns: int) -> int:
    """Return the numbers from a place to the next."""
    numbers = TILES * columns
    return numbers + (APART - numbers) % PAGE


class TileProduct:
    """Computes and finishes pixels tile by tile.

    Args:
        tiled: the transformed filter.
        phase: the same by the definition.
        source: of both.
        buffers: scratch.
        finish: the end of the step.
        workers: how many call at once.
    """

    def __init__(self, tiled: Tiled, phase: Phase, source: Source, buffers: Buffers,
                 finish: Finish, workers: int) -> None:
        """View the working memory."""
        out, scratch = finish.out, buffers.scratch
        self.finish, self.group = finish, tiled.channels
        self.size = out.height, out.width
        self.layer = Layer(source, out.channels, tiled.bounds, tiled.filters, tiled.panels,
                           (phase.pieces, phase.filters, phase.panels))
        most = out.lanes * -(-out.height // 2) * -(-out.width // 2)
        self.list = ints(scratch["cpu.tiles"], 2 * most).reshape(most, 2)
        slots = max(workers, FEW_CHUNKS)
        self.rows = Rows(
            floats(scratch["cpu.rows"], slots, HELD * TILES + BLOCK, out.channels + PANEL).numpy(),
            np.zeros((slots, HELD * TILES), np.int32), np.zeros((slots, TILES), np.uint8))
        self.memory = [self._memory(scratch, w, phase.segments) for w in range(workers)]
        self.counters = np.zeros(1, np.int64), np.zeros(FEW_CHUNKS, np.int64)

    def _memory(self, scratch: Any, worker: int, segments: int) -> Memory:
        patches = _places(scratch[f"cpu.patches.{worker}"], self.layer.source.channels)
        products = _places(scratch[f"cpu.products.{worker}"], self.layer.channels + WIDTH)
        rows = patches.ctypes.data + patches.strides[1] * np.arange(TILES)
        return Memory(patches, rows, products, np.zeros(PLACES, np.int64),
                      np.zeros((BLOCK, 0), np.float32), np.zeros((1, segments, BLOCK), np.int64),
                      worker)

    def begin(self, pixels: np.ndarray, workers: int) -> bool:
        """Take up the pixels of a frame; return whether they are better computed by tiles."""
        total = find_tiles(pixels, *self.size, self.list)
        if not pays(len(pixels), total, self.group):
            return False
        count, parts = self._cut(total, workers)
        for counter in self.counters:
            counter.fill(0)
        self.frame = Frame(self.list[:total], count, parts, *self.counters)
        return True

    def _cut(self, tiles: int, workers: int) -> tuple[int, int]:
        """Return the tiles of a chunk, and the parts of its columns."""
        most = self.rows.spoiled.shape[1]
        groups, panels, _ = self.layer.panels.shape
        if (groups == 1 and workers > 1 and tiles <= FEW_CHUNKS * most
                and self.group[0] * self.group[1] >= LARGE_PRODUCT):
            return most, min(workers, panels)
        share = -(-tiles // (2 * workers)) if workers > 1 else tiles
        few = BLOCK // 3
        return min(-(-share // few) * few, most), 1

    def __call__(self, worker: int) -> None:
        """Apply the rule at the tiles that no other worker takes."""
        memory, rows, finish = self.memory[worker], self.rows, self.finish
        if finish.compiled:
            convolve_tiles(self.layer, self.frame, memory, rows, finish.ending,
                           finish.counts[worker])
            return
        while (found := compute_next(self.layer, self.frame, memory, rows))[1]:
            slot, count = found
            finish.rows(worker, rows.new[slot], rows.pixels[slot, :count])


def _places(scratch: Any, columns: int) -> np.ndarray:
    """View scratch as float32 ``[16, TILES, columns]``, the places apart."""
    place = _place(columns)
    whole = floats(scratch, PLACES * place)
    view: np.ndarray = whole.as_strided((PLACES, TILES, columns), (place, columns, 1)).numpy()
    return view


@loop
def convolve_tiles(layer, frame, memory, rows, ending, counts):
    """Compute and finish tiles, until all are taken."""
    while True:
        slot, count = compute_next(layer, frame, memory, rows)
        if count == 0:
            return
        finish_rows(rows.new[slot], rows.pixels[slot, :count], ending, counts)


@loop
def compute_next(layer, frame, memory, rows):
    """Compute parts that nobody has taken, up to one that makes a chunk whole.

    Returns:
        Where its rows are in `Rows`, and how many; 0 at the end.
    """
    panels = layer.panels
    while True:
        part = take(frame.taken.ctypes.data, 1)
        chunk, part = part // frame.parts, part % frame.parts
        tiles = frame.tiles[chunk * frame.count:(chunk + 1) * frame.count]
        if tiles.shape[0] == 0:
            return 0, 0
        slot = memory.slot if frame.parts == 1 else chunk
        first = panels.shape[1] * part // frame.parts
        stop = panels.shape[1] * (part + 1) // frame.parts
        transform_patches(layer.source, tiles, memory.patches, memory.table)
        multiply_places(layer, first, stop, tiles.shape[0], memory)
        channel = panels[0, first, 1]
        channels = (layer.channels if part + 1 == frame.parts else panels[0, stop, 1]) - channel
        transform_back(tiles, channel, channels, memory, rows.new[slot], rows.spoiled[slot])
        if frame.parts == 1 or take(frame.done[slot:].ctypes.data, 1) == frame.parts - 1:
            return slot, gather_candidates(layer, tiles, memory, rows, slot)


@loop
def find_tiles(pixels, height, width, tiles):
    """List the tiles that hold some pixels.

    Args:
        pixels: int32, flat indices over lanes, ascending.
        height, width: of a lane.
        tiles: int32 ``[lanes * ceil(height / 2) * ceil(width / 2), 2]``, written: the upper left
            pixel, and which are held, as bits: 1 and 2 in the upper row, 4 and 8 in the lower.

    Returns:
        How many there are.
    """
    count, total, i = pixels.shape[0], 0, 0
    while i < count:
        row = np.int64(pixels[i]) // width
        upper = row * width
        lower = upper + width
        end = lower if row % height == height - 1 else lower + width
        j = i
        while j < count and pixels[j] < lower:
            j += 1
        last = j  # of the upper row; the lower begins
        while i < last or (j < count and pixels[j] < end):
            x = pixels[i] - upper if i < last else width
            if j < count and pixels[j] < end:
                x = min(x, pixels[j] - lower)
            held = 0
            while i < last and pixels[i] - upper < x + 2:
                held |= 1 << (pixels[i] - upper - x)
                i += 1
            while j < count and pixels[j] < end and pixels[j] - lower < x + 2:
                held |= 4 << (pixels[j] - lower - x)
                j += 1
            tiles[total, 0], tiles[total, 1] = upper + x, held
            total += 1
        i = j
    return total


@loop
def transform_patches(source, tiles, patches, table):
    """Write ``B^T d B`` of each tile's patch, channel by channel; see `Memory`."""
    height_out, width_out = source.rows.shape[0], source.cols.shape[0]
    whole = source.channels // WIDTH
    for i in range(tiles.shape[0]):
        pixel = np.int64(tiles[i, 0])
        x = pixel % width_out
        y = pixel // width_out % height_out
        first = pixel // (width_out * height_out) * source.height
        for j in range(4):  # what lies below or beside the map is read by no pixel
            line = np.int32(-1)
            if j < 3 or y + 1 < height_out:
                line = source.rows[y + j // 3, j - j // 3]
            for k in range(4):
                column = np.int32(-1)
                if k < 3 or x + 1 < width_out:
                    column = source.cols[x + k // 3, k - k // 3]
                where = source.zeros.ctypes.data
                if line >= 0 and column >= 0:
                    place = (first + line) * source.width + column
                    where = source.data.ctypes.data + 4 * source.step * place
                table[4 * j + k] = where
        out = patches.ctypes.data + i * patches.strides[1]
        _to_places(table.ctypes.data, 0, whole, out, patches.strides[0])
        _to_places_singly(table.ctypes.data, 4 * WIDTH * whole, source.channels - WIDTH * whole,
                          out, patches.strides[0])


@loop
def multiply_places(layer, first, stop, count, memory):
    """Multiply the transformed patches of some tiles with some panels, place by place."""
    products, bounds, panels = memory.products, layer.bounds, layer.panels
    for place in range(PLACES):
        for group in range(panels.shape[0]):
            for part in range(bounds.shape[0] - 1):
                for q in range(first, stop):
                    column, channel = panels[group, q, 1], panels[group, q, 3] + bounds[part]
                    piece = _piece(layer, group, q, place, part)
                    ahead = piece
                    if q + 1 < stop:
                        ahead = _piece(layer, group, q + 1, place, part)
                    elif place + 1 < PLACES:
                        ahead = _piece(layer, group, first, place + 1, part)
                    out = products.ctypes.data + place * products.strides[0] + 4 * column
                    for block in range((count + BLOCK - 1) // BLOCK):
                        multiply_block(
                            count - block * BLOCK, panels[group, q, 2],
                            memory.rows.ctypes.data + 8 * BLOCK * block, 1,
                            bounds[part + 1] - bounds[part],
                            place * memory.patches.strides[0] + 4 * channel, piece, ahead,
                            out + block * BLOCK * products.strides[1], products.strides[1],
                            part != 0)


@loop
def _piece(layer, group, q, place, part):
    """Return the address of a part of a panel at one place."""
    first = place * layer.bounds[-1] + layer.bounds[part]
    columns = layer.panels[group, q, 2] * WIDTH
    return layer.filters.ctypes.data + 4 * (layer.panels[group, q, 0] + first * columns)


@loop
def transform_back(tiles, channel, channels, memory, new, spoiled):
    """Write some channels of ``A^T m A`` to the rows of the candidates; note spoiled tiles."""
    products, table = memory.products, memory.table
    whole, at = channels // WIDTH, 0
    for i in range(tiles.shape[0]):
        for k in range(HELD):
            table[k] = new[new.shape[0] - 1, channel:].ctypes.data  # nobody's
            if tiles[i, 1] >> k & 1:
                table[k] = new[at, channel:].ctypes.data
                at += 1
        start = products.ctypes.data + i * products.strides[1] + 4 * channel
        bad = _from_places(start, products.strides[0], 0, whole, table.ctypes.data)
        bad |= _from_places_singly(start, products.strides[0], 4 * WIDTH * whole,
                                   channels - WIDTH * whole, table.ctypes.data)
        if bad:
            spoiled[i] = 1


@loop
def gather_candidates(layer, tiles, memory, rows, slot):
    """List a chunk's candidates, compute those of spoiled tiles anew; return how many there are."""
    pixels, width, at = rows.pixels[slot], layer.source.cols.shape[0], 0
    for i in range(tiles.shape[0]):
        before = at
        for k in range(HELD):
            if tiles[i, 1] >> k & 1:
                pixels[at] = tiles[i, 0] + k // 2 * width + k % 2
                at += 1
        if rows.spoiled[slot, i]:
            rows.spoiled[slot, i] = 0
            compute_by_definition(layer, pixels[before:at], memory, rows.new[slot], before)
    return at


@loop
def compute_by_definition(layer, pixels, memory, new, first):
    """Compute up to a block of pixels tap by tap, into the rows from ``first`` on."""
    pieces, filters, panels = layer.by_definition
    beside = new[new.shape[0] - BLOCK:]
    find_rows(layer.source, pixels, memory.copies, memory.addresses)
    multiply_rows(memory.addresses, pixels.shape[0], pieces, filters, panels, beside)
    for i in range(pixels.shape[0]):
        for c in range(layer.channels):
            new[first + i, c] = beside[i, c]


_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def _vector(width: int) -> Any:
    return ir.VectorType(_FLOAT, width) if width > 1 else _FLOAT


def _at(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _addresses(builder: Any, table: Any, count: int) -> list[Any]:
    return [builder.load(_at(builder, table, _INT(8 * i), _INT)) for i in range(count)]


def _transform(width: int) -> Any:
    """Make the loop over channels of ``B^T d B``, so many channels at a time.

    In vector types, because no compiler vectorises a loop with 16 arrays in and 16 out.
    """
    kind = _vector(width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, first, count, out, place_step = args
        taps = _addresses(builder, table, PLACES)

        def along(d: list[Any]) -> list[Any]:
            return [builder.fsub(d[0], d[2]), builder.fadd(d[1], d[2]),
                    builder.fsub(d[2], d[1]), builder.fsub(d[1], d[3])]

        with cgutils.for_range(builder, count) as over_channels:
            offset = builder.add(first, builder.mul(over_channels.index, _INT(4 * width)))
            d = [builder.load(_at(builder, tap, offset, kind), align=4) for tap in taps]
            columns = [along(d[x::4]) for x in range(4)]
            target = builder.add(out, offset)
            for y in range(4):
                for x, number in enumerate(along([column[y] for column in columns])):
                    step = builder.mul(place_step, _INT(4 * y + x))
                    builder.store(number, _at(builder, target, step, kind), align=4)
        return context.get_dummy_value()

    @intrinsic
    def transform(typing, table, first, count, out, place_step):
        return types.void(*[types.intp] * 5), codegen

    return transform


def _transform_back(width: int) -> Any:
    """Make the loop over channels of ``A^T m A``; it returns whether a number is not finite."""
    kind = _vector(width)
    zero = ir.Constant(kind, None) if width > 1 else _FLOAT(0.0)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        products, place_step, first, count, table = args
        rows = _addresses(builder, table, HELD)
        check = cgutils.alloca_once_value(builder, zero)

        def along(m: list[Any]) -> list[Any]:
            return [builder.fadd(m[0], builder.fadd(m[1], m[2])),
                    builder.fsub(builder.fsub(m[1], m[2]), m[3])]

        with cgutils.for_range(builder, count) as over_channels:
            offset = builder.add(first, builder.mul(over_channels.index, _INT(4 * width)))
            source = builder.add(products, offset)
            m = [builder.load(_at(builder, source, builder.mul(place_step, _INT(i)), kind),
                              align=4) for i in range(PLACES)]
            columns = [along(m[x::4]) for x in range(4)]
            numbers = [n for y in range(2) for n in along([column[y] for column in columns])]
            total = builder.load(check)
            for row, number in zip(rows, numbers, strict=True):
                builder.store(number, _at(builder, row, offset, kind), align=4)
                # 0, or NaN where the number is infinite or NaN
                total = builder.fadd(total, builder.fmul(number, zero), flags=("contract",))
            builder.store(total, check)
        total = builder.load(check)
        same = builder.fcmp_unordered("uno", total, total)
        if width == 1:
            return same
        bits = builder.bitcast(same, ir.IntType(width))
        return builder.icmp_unsigned("!=", bits, ir.IntType(width)(0))

    @intrinsic
    def transform(typing, products, place_step, first, count, table):
        return types.boolean(*[types.intp] * 5), codegen

    return transform


_to_places, _to_places_singly = _transform(WIDTH), _transform(1)
_from_places, _from_places_singly = _transform_back(WIDTH), _transform_back(1)
