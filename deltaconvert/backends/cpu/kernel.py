"""The product behind every convolution: rows, wherever they lie, times a packed filter.

A block of twelve rows times two vectors of columns stays in registers while it runs down the
rows' numbers; each number is loaded once and broadcast. It is written in LLVM's own vector
types, because no loop that a compiler vectorises keeps 24 accumulators in place: 57 billion
multiply-adds a second on one Zen 4 core, of the 59 that there are (``torch.mm``: 48). The rows
are addresses, so that neighbourhoods are read where they are and never copied.

The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (2008): a piece of the filter that stays in the second cache serves all rows.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.jit import loop

_FLOAT, _INT, _INDEX, _BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(8)
_READ, _SECOND_CACHE, _DATA = _INDEX(0), _INDEX(2), _INDEX(1)  # what llvm.prefetch calls so
CACHE_LINE = 64
_FUSE = ("contract",)  # multiply and add may be one instruction, where there is one


def _registers() -> tuple[int, int]:
    """Return how many floats a vector register of this processor holds, and rows for a block."""
    told = getattr(config, "CPU_NAME", None)  # NUMBA_CPU_NAME: compile for another processor
    features = {} if told else llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 12  # 32 registers: 24 accumulators
    if features.get("avx2") or features.get("avx"):
        return 8, 6  # 16 registers: 12 accumulators
    return 4, 12 if features.get("neon") else 6


WIDTH, BLOCK = _registers()
_MOST, _FEW = BLOCK * 2 // 3, BLOCK // 3
PANEL = 2 * WIDTH  # columns that are computed at a time


def _product(rows: int, vectors: int) -> Any:
    """Make the kernel of so many rows and vectors of columns."""
    vector = ir.VectorType(_FLOAT, WIDTH)
    nothing = ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(_INDEX, WIDTH), None)
    line = 4 * vectors * WIDTH  # bytes of the filter's columns at one number of the rows

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses, segments, numbers, first, filters, ahead, out, out_step, add = args
        prefetch = cgutils.get_or_insert_function(builder.module, ir.FunctionType(
            ir.VoidType(), [_BYTE.as_pointer(), _INDEX, _INDEX, _INDEX]), "llvm.prefetch.p0")

        def at(address: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def place(row: int, v: int) -> Any:
            here = builder.add(out, builder.mul(out_step, _INT(row)))
            return at(here, _INT(4 * WIDTH * v), vector)

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)]
                for _ in range(rows)]
        cells = [(row, v) for row in range(rows) for v in range(vectors)]
        with builder.if_else(add) as (then, otherwise):
            with then:
                for row, v in cells:
                    builder.store(builder.load(place(row, v), align=4), sums[row][v])
            with otherwise:
                for row, v in cells:
                    builder.store(ir.Constant(vector, None), sums[row][v])
        with cgutils.for_range(builder, segments) as over_segments:
            table = builder.add(addresses, builder.mul(over_segments.index, _INT(8 * BLOCK)))
            starts = [at(builder.load(at(table, _INT(8 * row), _INT)), first, _FLOAT)
                      for row in range(rows)]
            done = builder.mul(builder.mul(over_segments.index, numbers), _INT(line))
            piece, later = builder.add(filters, done), builder.add(ahead, done)
            with cgutils.for_range(builder, numbers) as over_numbers:
                offset = builder.mul(over_numbers.index, _INT(line))
                here = builder.add(piece, offset)
                for part in range(0, line, CACHE_LINE):
                    builder.call(prefetch, [
                        at(builder.add(later, offset), _INT(part), _BYTE),
                        _READ, _SECOND_CACHE, _DATA])
                columns = [builder.load(at(here, _INT(4 * WIDTH * v), vector), align=4)
                           for v in range(vectors)]
                for row in range(rows):
                    number = builder.load(builder.gep(starts[row], [over_numbers.index]))
                    filled = builder.shuffle_vector(
                        builder.insert_element(nothing, number, _INDEX(0)), nothing, everywhere)
                    for v in range(vectors):
                        product = builder.fmul(filled, columns[v], flags=_FUSE)
                        total = builder.fadd(product, builder.load(sums[row][v]), flags=_FUSE)
                        builder.store(total, sums[row][v])
        for row, v in cells:
            builder.store(builder.load(sums[row][v]), place(row, v), align=4)
        return context.get_dummy_value()

    @intrinsic
    def product(typing, addresses, segments, numbers, first, filters, ahead, out, out_step, add):
        return types.void(*[types.intp] * 8, types.boolean), codegen

    return product


_twelve, _eight, _four = (_product(rows, 2) for rows in (BLOCK, _MOST, _FEW))
_twelve_narrow, _eight_narrow, _four_narrow = (
    _product(rows, 1) for rows in (BLOCK, _MOST, _FEW))


@loop
def multiply_block(rows, vectors, addresses, segments, numbers, first, filters, ahead, out,
                   out_step, add):
    """Multiply a block of up to `BLOCK` rows with one or two vectors of columns.

    Args:
        rows: how many; a few more are computed, so there must be addresses and room for them.
        vectors: 1 or 2.
        addresses: of a table of addresses, int64 ``[segments, BLOCK]``.
        segments: pieces of a row, each of so many ``numbers``.
        numbers: floats of a piece to take.
        first: bytes from each address to the first of them.
        filters: address of the filter, float32 ``[segments * numbers, vectors * WIDTH]``.
        ahead: address of the filter that comes next, fetched into the second cache meanwhile.
        out, out_step: address of the result's first number, and bytes from a row to the next.
        add: to what is there.
    """
    if vectors == 2:
        if rows > _MOST:
            _twelve(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
        elif rows > _FEW:
            _eight(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
        else:
            _four(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
    elif rows > _MOST:
        _twelve_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
    elif rows > _FEW:
        _eight_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
    else:
        _four_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)


@loop
def multiply_rows(addresses, count, pieces, filters, panels, new):
    """Multiply rows with a filter.

    Args:
        addresses: int64 ``[blocks, segments, BLOCK]``: where the segments of each row lie;
            those of the last block's rows behind ``count`` must be readable too.
        count: rows.
        pieces: int64 ``[P, 5]``, of the filter along the rows: first segment, segments, first
            number and numbers of each, and the numbers of a row before it.
        filters: float32, flat: the panels one behind the other.
        panels: int64 ``[groups, Q, 4]``: where a panel begins in ``filters``, its first
            column, its vectors, and the first channel that its rows read. The last of a group
            may reach into the columns of the next group, which is computed later.
        new: float32 ``[rows of whole blocks, columns]``, written; with room for what the last
            panel reaches beyond its columns.
    """
    segments, step = addresses.shape[1], new.shape[1]
    table, weights, out = addresses.ctypes.data, filters.ctypes.data, new.ctypes.data
    for group in range(panels.shape[0]):
        for p in range(pieces.shape[0]):
            first_segment, taken, first, numbers, before = (
                pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3], pieces[p, 4])
            for q in range(panels.shape[1]):
                start, column, vectors, channel = (
                    panels[group, q, 0], panels[group, q, 1], panels[group, q, 2],
                    panels[group, q, 3])
                piece = weights + 4 * (start + before * vectors * WIDTH)
                ahead = weights + 4 * _next_piece(pieces, panels[group], p, q)
                for block in range((count + BLOCK - 1) // BLOCK):
                    rows = table + 8 * BLOCK * (block * segments + first_segment)
                    target = out + 4 * (block * BLOCK * step + column)
                    multiply_block(count - block * BLOCK, vectors, rows, taken, numbers,
                                   4 * (channel + first), piece, ahead, target, 4 * step,
                                   before != 0)


@loop
def _next_piece(pieces, panels, p, q):
    """Return where the filter's next piece begins; the last's own beginning."""
    if q + 1 < panels.shape[0]:
        q += 1
    elif p + 1 < pieces.shape[0]:
        p, q = p + 1, 0
    return panels[q, 0] + pieces[p, 4] * panels[q, 2] * WIDTH


def _take(typing: Any, counter: Any, amount: Any) -> Any:
    """Add an amount to the number at an address, at once for all threads; return what it was."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, more = args
        place = builder.inttoptr(address, _INT.as_pointer())
        return builder.atomic_rmw("add", place, more, "acq_rel")

    return types.intp(types.intp, types.intp), codegen


take: Any = intrinsic(_take)
