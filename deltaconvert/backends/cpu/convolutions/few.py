"""The product of few columns, which would leave most places of vectors of columns empty.

For up to four, a vector is so many numbers of a row: a block's sums are a vector for each row and
column, added up across at the end. Up to half a vector's columns are taken in halves: a processor
that computes vectors of sixteen in two steps is twice as fast.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (intrinsics: Numba infers their types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.vectors import BLOCK, WIDTH
from deltaconvert.backends.cpu.rows.row import Row, everywhere

MOST_COLUMNS = 4
HALF = 8  # of sixteen
_ROWS = BLOCK // 3
_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR, _FOUR = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_FLOAT, MOST_COLUMNS)
_EIGHT = ir.VectorType(_FLOAT, HALF)
_FUSE = ("contract",)


@loop
def multiply_few(addresses, count, numbers, columns, filters, new):
    """Multiply rows with a filter of few columns.

    Args:
        addresses: int64 ``[blocks, segments, BLOCK]``; see `kernel.multiply_rows`.
        count: rows.
        numbers: of a segment.
        columns: up to `MOST_COLUMNS`, or `HALF`.
        filters: ``[segments, numbers in whole vectors, columns, WIDTH]``, flat, zeros behind a
            segment's last; where there is one column, another of zeros is beside it. For `HALF`,
            ``[segments, numbers, HALF]``.
        new: float32 ``[rows of whole blocks, at least HALF]``, written.
    """
    if columns == HALF:
        multiply_half(addresses, count, numbers, filters, new)
        return
    segments, step = addresses.shape[1], 4 * new.shape[1]
    table, weights, out = addresses.ctypes.data, filters.ctypes.data, new.ctypes.data
    for first in range(0, count, _ROWS):
        rows = table + 8 * (first // BLOCK * segments * BLOCK + first % BLOCK)
        if columns <= 2:
            two(filters, rows, segments, numbers, weights, out + first * step, step)
        elif columns == 3:
            three(filters, rows, segments, numbers, weights, out + first * step, step)
        else:
            four(filters, rows, segments, numbers, weights, out + first * step, step)


@loop
def multiply_half(addresses, count, numbers, filters, new):
    """Do so for `HALF` columns."""
    segments, step = addresses.shape[1], 4 * new.shape[1]
    table, weights, out = addresses.ctypes.data, filters.ctypes.data, new.ctypes.data
    first = 0
    while first < count:
        rows = table + 8 * (first // BLOCK * segments * BLOCK + first % BLOCK)
        if first % BLOCK == 0 and count - first > 2 * _ROWS:
            half_block(filters, rows, segments, numbers, weights, out + first * step, step)
            first += BLOCK
        else:
            half_rows(filters, rows, segments, numbers, weights, out + first * step, step)
            first += _ROWS


def _halves(builder: Any, one: Any, other: Any, first: list[int], second: list[int]) -> Any:
    """Add two choices of the places of two vectors."""
    parts = [builder.shuffle_vector(one, other, ir.Constant(
        ir.VectorType(_INDEX, len(places)), places)) for places in (first, second)]
    return builder.fadd(*parts)


def _across(builder: Any, vectors: list[Any]) -> Any:
    """Add up the places of each of up to four vectors; return the sums as one vector."""
    folded = []
    for vector in vectors:
        size = WIDTH
        while size > MOST_COLUMNS:
            size //= 2
            vector = _halves(builder, vector, vector, [*range(size)], [*range(size, 2 * size)])
        folded.append(vector)
    folded += [ir.Constant(_FOUR, None)] * (MOST_COLUMNS - len(folded))
    one, other = (_halves(builder, a, b, [0, 4, 1, 5], [2, 6, 3, 7])
                  for a, b in (folded[:2], folded[2:]))
    return _halves(builder, one, other, [0, 1, 4, 5], [2, 3, 6, 7])


def _kernel(columns: int) -> Any:
    """Make the kernel of so many columns.

    It is called with: the array that rows and filter are like; the address of the rows' addresses,
    those of a segment `BLOCK` apart; segments; numbers of each; the address of the filter; that of
    the result, and bytes from a row of it to the next.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, rows, segments, numbers, filters, out, out_step = args
        segment = Row(builder, numbers, signature.args[0].dtype)
        size = 2 if segment.narrow else 4
        zero = ir.Constant(_VECTOR, None)
        sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(columns)]
                for _ in range(_ROWS)]
        for places in sums:
            for place in places:
                builder.store(zero, place)
        vectors = builder.sdiv(builder.add(numbers, _INT(WIDTH - 1)), _INT(WIDTH))
        taken = builder.mul(vectors, _INT(size * columns * WIDTH))
        with cgutils.for_range(builder, segments) as over:
            table = builder.add(rows, builder.mul(over.index, _INT(8 * BLOCK)))
            starts = [builder.load(builder.inttoptr(builder.add(table, _INT(8 * row)),
                                                    _INT.as_pointer())) for row in range(_ROWS)]
            lines = builder.add(filters, builder.mul(over.index, taken))

            def body(first: Any, mask: Any) -> None:
                line = builder.mul(first, _INT(columns))
                weights = [segment.load_stored(lines, builder.add(line, _INT(WIDTH * c)), None)
                           for c in range(columns)]
                for start, places in zip(starts, sums, strict=True):
                    number = segment.load_stored(start, first, mask)
                    for weight, place in zip(weights, places, strict=True):
                        product = builder.fmul(number, weight, flags=_FUSE)
                        builder.store(builder.fadd(product, builder.load(place), flags=_FUSE),
                                      place)

            segment.each(body)
        for row, places in enumerate(sums):
            target = builder.add(out, builder.mul(out_step, _INT(row)))
            total = _across(builder, [builder.load(place) for place in places])
            builder.store(total, builder.inttoptr(target, _FOUR.as_pointer()), align=4)
        return context.get_dummy_value()

    @intrinsic
    def kernel(typing, like, rows, segments, numbers, filters, out, out_step):
        return types.void(like, *[types.intp] * 6), codegen

    return kernel


two, three, four = (_kernel(columns) for columns in (2, 3, 4))


def _half_kernel(rows: int) -> Any:
    """Make the kernel of so many rows and half a vector's columns, called as the others are."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, table, segments, numbers, filters, out, out_step = args
        narrow = signature.args[0].dtype == types.uint16
        size = 2 if narrow else 4
        sums = [cgutils.alloca_once(builder, _EIGHT) for _ in range(rows)]
        for place in sums:
            builder.store(ir.Constant(_EIGHT, None), place)
        taken = builder.mul(numbers, _INT(size * HALF))
        with cgutils.for_range(builder, segments) as over:
            here = builder.add(table, builder.mul(over.index, _INT(8 * BLOCK)))
            starts = [builder.load(builder.inttoptr(builder.add(here, _INT(8 * row)),
                                                    _INT.as_pointer())) for row in range(rows)]
            lines = builder.add(filters, builder.mul(over.index, taken))
            with cgutils.for_range(builder, numbers) as along:
                step = builder.mul(along.index, _INT(size))
                line = builder.add(lines, builder.mul(step, _INT(HALF)))
                weights = _widened(builder, line, HALF, narrow)
                for start, place in zip(starts, sums, strict=True):
                    number = _widened(builder, builder.add(start, step), 0, narrow)
                    product = builder.fmul(everywhere(builder, number, HALF), weights, flags=_FUSE)
                    builder.store(builder.fadd(product, builder.load(place), flags=_FUSE), place)
        for row, place in enumerate(sums):
            target = builder.add(out, builder.mul(out_step, _INT(row)))
            builder.store(builder.load(place), builder.inttoptr(target, _EIGHT.as_pointer()),
                          align=4)
        return context.get_dummy_value()

    @intrinsic
    def kernel(typing, like, rows, segments, numbers, filters, out, out_step):
        return types.void(like, *[types.intp] * 6), codegen

    return kernel


def _widened(builder: Any, address: Any, count: int, narrow: bool) -> Any:
    """Load a vector of a map's numbers, or a single one, as float32."""
    def kind(of: Any) -> Any:
        return ir.VectorType(of, count) if count else of

    stored = kind(ir.IntType(16) if narrow else _FLOAT)
    number = builder.load(builder.inttoptr(address, stored.as_pointer()), align=2 if narrow else 4)
    if not narrow:
        return number
    sixteen = ir.Constant(kind(_INDEX), [16] * count if count else 16)
    upper = builder.shl(builder.zext(number, kind(_INDEX)), sixteen)
    return builder.bitcast(upper, kind(_FLOAT))


half_block, half_rows = _half_kernel(BLOCK), _half_kernel(_ROWS)
