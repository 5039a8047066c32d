"""The inner kernels of the product, in LLVM's own vector types.

A block of twelve rows times two vectors of columns stays in registers while it runs down the
rows' numbers; each number is loaded once and broadcast. No loop that a compiler vectorises keeps
24 accumulators in place. bfloat16 is multiplied in pairs of neighbours, and summed in float32.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (intrinsics: Numba infers their types)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.compiling.vectors import BLOCK, CACHE_LINE, WIDTH
from deltaconvert.backends.cpu.rows.row import everywhere

_FLOAT, _INT, _INDEX, _BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(8)
_SHORT = ir.IntType(16)
_READ, _SECOND_CACHE, _DATA = _INDEX(0), _INDEX(2), _INDEX(1)  # what llvm.prefetch calls so
_FUSE = ("contract",)  # multiply and add may be one instruction, where there is one
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_BITS = ir.VectorType(_INDEX, WIDTH)


class Singles:
    """float32: a number of a row at a time, times a line of columns."""

    numbers = 1  # of a step

    def row(self, builder: Any, address: Any) -> Any:
        """Load a step of a row, for all columns."""
        return everywhere(builder, _load(builder, address, _FLOAT), WIDTH)

    def columns(self, builder: Any, address: Any) -> Any:
        """Load a vector of a line."""
        return _load(builder, address, _VECTOR)

    def add(self, builder: Any, total: Any, row: Any, columns: Any) -> Any:
        """Add the products to a vector of sums."""
        return builder.fadd(builder.fmul(row, columns, flags=_FUSE), total, flags=_FUSE)


class Pairs:
    """bfloat16: two neighbours of a row at a time, times a line of columns of two each.

    The instruction for it adds both products to a float32. Its sum is the same but for the
    order, and for numbers below the normal ones, which count as 0.
    """

    numbers = 2

    def row(self, builder: Any, address: Any) -> Any:
        """Load a pair, for all columns."""
        return everywhere(builder, _load(builder, address, _INDEX), WIDTH)

    def half(self, builder: Any, address: Any) -> Any:
        """Load the last number where their number is odd: what lies behind it is not its own."""
        number = builder.zext(_load(builder, address, _SHORT), _INDEX)
        return everywhere(builder, number, WIDTH)

    def columns(self, builder: Any, address: Any) -> Any:
        """Load a vector of a line."""
        return _load(builder, address, _BITS)

    def add(self, builder: Any, total: Any, row: Any, columns: Any) -> Any:
        """Add both products to a vector of sums."""
        instruction = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR, _BITS, _BITS]),
            "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(instruction, [total, row, columns])


class WidenedPairs(Pairs):
    """The same without that instruction: both halves of a pair as float32."""

    def add(self, builder: Any, total: Any, row: Any, columns: Any) -> Any:
        """Add the products one after the other."""
        for widen in (self._first, self._second):
            total = Singles().add(builder, total, widen(builder, row), widen(builder, columns))
        return total

    def _first(self, builder: Any, pairs: Any) -> Any:
        shift = ir.Constant(_BITS, [16] * WIDTH)
        return builder.bitcast(builder.shl(pairs, shift), _VECTOR)

    def _second(self, builder: Any, pairs: Any) -> Any:
        upper = ir.Constant(_BITS, [-65536] * WIDTH)
        return builder.bitcast(builder.and_(pairs, upper), _VECTOR)


def _at(builder: Any, address: Any, offset: Any) -> Any:
    return builder.add(address, offset if isinstance(offset, ir.Value) else _INT(offset))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    """Load what lies at an address, aligned to its numbers; pairs, to one of theirs."""
    align = 2 if kind in (_INDEX, _SHORT) else 4
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


class _Block:
    """The code of a kernel while it is written: ``rows`` times ``vectors`` sums, and their steps.

    What is taken of each row at a time is called a step; a line is the filter's columns at one.
    """

    def __init__(self, builder: Any, rows: int, vectors: int, arithmetic: Any) -> None:
        """Reserve the sums: LLVM keeps them in registers."""
        self.builder, self.rows, self.vectors = builder, rows, vectors
        self.arithmetic, self.line = arithmetic, 4 * vectors * WIDTH  # bytes
        self.cells = [(row, v) for row in range(rows) for v in range(vectors)]
        self.sums = {cell: cgutils.alloca_once(builder, _VECTOR) for cell in self.cells}

    def begin(self, out: Any, out_step: Any, add: Any) -> None:
        """Take the sums up from the result, or from zero."""
        builder = self.builder
        with builder.if_else(add) as (then, otherwise):
            with then:
                for cell in self.cells:
                    there = builder.load(self._place(out, out_step, *cell), align=4)
                    builder.store(there, self.sums[cell])
            with otherwise:
                for cell in self.cells:
                    builder.store(ir.Constant(_VECTOR, None), self.sums[cell])

    def end(self, out: Any, out_step: Any) -> None:
        """Write the sums."""
        for cell in self.cells:
            self.builder.store(self.builder.load(self.sums[cell]),
                               self._place(out, out_step, *cell), align=4)

    def _place(self, out: Any, out_step: Any, row: int, v: int) -> Any:
        here = _at(self.builder, out, self.builder.mul(out_step, _INT(row)))
        return self.builder.inttoptr(_at(self.builder, here, 4 * WIDTH * v), _VECTOR.as_pointer())

    def segment(self, starts: list[Any], numbers: Any, piece: Any, ahead: Any) -> None:
        """Run down a segment: addresses of its rows and of its lines, and of lines to come."""
        builder, arithmetic = self.builder, self.arithmetic
        steps = builder.udiv(numbers, _INT(arithmetic.numbers))
        with cgutils.for_range(builder, steps) as over:
            offset = builder.mul(over.index, _INT(self.line))
            self._prefetch(builder.add(ahead, offset))
            self._step(arithmetic.row, starts, builder.mul(over.index, _INT(4)),
                       builder.add(piece, offset))
        if arithmetic.numbers == 2:
            with builder.if_then(builder.trunc(numbers, ir.IntType(1))):
                self._step(arithmetic.half, starts, builder.mul(steps, _INT(4)),
                           builder.add(piece, builder.mul(steps, _INT(self.line))))

    def _step(self, load: Callable[..., Any], starts: list[Any], along: Any, line: Any) -> None:
        builder = self.builder
        columns = [self.arithmetic.columns(builder, _at(builder, line, 4 * WIDTH * v))
                   for v in range(self.vectors)]
        for row, start in enumerate(starts):
            numbers = load(builder, builder.add(start, along))
            for v in range(self.vectors):
                place = self.sums[row, v]
                builder.store(self.arithmetic.add(builder, builder.load(place), numbers,
                                                  columns[v]), place)

    def _prefetch(self, line: Any) -> None:
        prefetch = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(
            ir.VoidType(), [_BYTE.as_pointer(), _INDEX, _INDEX, _INDEX]), "llvm.prefetch.p0")
        for part in range(0, self.line, CACHE_LINE):
            where = self.builder.inttoptr(_at(self.builder, line, part), _BYTE.as_pointer())
            self.builder.call(prefetch, [where, _READ, _SECOND_CACHE, _DATA])


def product(rows: int, vectors: int, arithmetic: Any) -> Any:
    """Make the kernel of so many rows and vectors of columns; see `kernel.multiply_block`."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses, segments, numbers, first, filters, ahead, out, out_step, add = args
        block = _Block(builder, rows, vectors, arithmetic)
        block.begin(out, out_step, add)
        step = arithmetic.numbers
        steps = builder.udiv(builder.add(numbers, _INT(step - 1)), _INT(step))
        size = builder.mul(steps, _INT(block.line))
        with cgutils.for_range(builder, segments) as over:
            table = _at(builder, addresses, builder.mul(over.index, _INT(8 * BLOCK)))
            starts = [_at(builder, _load(builder, _at(builder, table, 8 * row), _INT), first)
                      for row in range(rows)]
            done = builder.mul(over.index, size)
            block.segment(starts, numbers, builder.add(filters, done), builder.add(ahead, done))
        block.end(out, out_step)
        return context.get_dummy_value()

    @intrinsic
    def kernel(typing, addresses, segments, numbers, first, filters, ahead, out, out_step, add):
        return types.void(*[types.intp] * 8, types.boolean), codegen

    return kernel
