"""The end of rows of one vector: the same as of longer ones, many rows in one go.

What a row's own end costs beside its numbers, 15 ns of 20, is a loop over its vectors, the choice
of an activation, a root and a division. Here the choice is one for all rows, and squares are
compared. No branch depends on what a row holds.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (intrinsics: Numba infers their types)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.rows.activations import CODES, apply
from deltaconvert.backends.cpu.rows.row import Row, difference_of, everywhere, magnitude_of

_FLOAT, _INT, _INDEX, _BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_BYTE = ir.IntType(8)
_VECTOR, _MASK = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_BIT, WIDTH)
_LANES = ir.Constant(ir.VectorType(_INT, WIDTH), list(range(WIDTH)))
_LARGEST = float(np.finfo(np.float32).max)
_FIRST = _INT(0)
MOST_ROWS = 64  # a bit each


class _Rows:
    """Generates loops over rows.

    Args:
        row: loads and stores.
        new, step: address of the first, and bytes from one to the next.
        pixels, count: address of their pixels, int32, and how many.
    """

    def __init__(self, row: Row, new: Any, step: Any, pixels: Any, count: Any) -> None:
        self.row, self.builder = row, row.builder
        self.new, self.step, self.pixels, self.count = new, step, pixels, count
        self.mask = self.builder.icmp_signed(
            "<", _LANES, everywhere(self.builder, row.channels, WIDTH))
        # Whole vectors: a store of a part is slow, and so is a load behind it.
        self.made = self.builder.ptrtoint(
            cgutils.alloca_once(self.builder, ir.ArrayType(_VECTOR, MOST_ROWS)), _INT)

    def pixel(self, index: Any) -> Any:
        """Load a pixel's number."""
        builder = self.builder
        place = builder.add(self.pixels, builder.mul(index, _INT(4)))
        return builder.sext(builder.load(builder.inttoptr(place, _INDEX.as_pointer()), align=4),
                            _INT)

    def activate(self, code: int, bias: Any, settings: Any, added: Any, added_step: Any) -> None:
        """Add to all rows and activate them, rounded as a map will hold them."""
        builder, row = self.builder, self.row
        biases = row.load(bias, _FIRST, self.mask)
        with cgutils.for_range(builder, self.count) as over:
            place = builder.add(self.new, builder.mul(over.index, self.step))
            number = builder.fadd(row.load(place, _FIRST, self.mask), biases)
            if added is not None:
                other = builder.add(added, builder.mul(self.pixel(over.index), added_step))
                number = builder.fadd(number, row.load_stored(other, _FIRST, self.mask))
            number = apply(builder, code, number, lambda i: row.load(
                settings, builder.mul(row.channels, _INT(i)), self.mask))
            row.store(row.rounded(number), self.made, self._made_at(over.index), None)

    def _made_at(self, index: Any) -> Any:
        return self.builder.mul(index, _INT(WIDTH))

    def compare(self, by_squares: bool, limit: Any, out: Any, out_step: Any, ahead: Any,
                exceeding: Any) -> None:
        """Compare all rows with the old ones; set a bit for each that exceeds the limit."""
        builder, row = self.builder, self.row
        with cgutils.for_range(builder, self.count) as over:
            later = self.pixel(builder.add(over.index, ahead))
            row.prefetch(builder.add(out, builder.mul(later, out_step)), _FIRST)
            number = row.load(self.made, self._made_at(over.index), None)
            old = builder.add(out, builder.mul(self.pixel(over.index), out_step))
            was = row.load_stored(old, _FIRST, self.mask)
            difference = difference_of(builder, number, was, self.mask)
            beyond = (_squares_beyond if by_squares else _any_beyond)(builder, difference, limit)
            bit = builder.shl(builder.zext(beyond, _INT), over.index)
            builder.store(builder.or_(builder.load(exceeding), bit), exceeding)

    def write(self, exceeding: Any, out: Any, out_step: Any, marks: Any) -> None:
        """Write and mark the rows whose bits are set.

        Not while others are compared: a load stalls behind a store that reaches into it, be it
        masked there.
        """
        builder, row = self.builder, self.row
        with cgutils.for_range(builder, self.count) as over:
            pixel = self.pixel(over.index)
            exceeds = builder.trunc(builder.lshr(exceeding, over.index), _BIT)
            mask = builder.and_(self.mask, everywhere(builder, exceeds, WIDTH))
            row.store_stored(row.load(self.made, self._made_at(over.index), None),
                             builder.add(out, builder.mul(pixel, out_step)), _FIRST, mask)
            builder.store(builder.zext(exceeds, _BYTE), builder.inttoptr(
                builder.add(marks, pixel), _BYTE.as_pointer()))


def _squares_beyond(builder: Any, difference: Any, limit: Any) -> Any:
    add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]),
        f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    total = builder.call(add, [_FLOAT(0.0), builder.fmul(difference, difference)],
                         fastmath=("reassoc",))
    return builder.fcmp_unordered(">", total, limit)


def _any_beyond(builder: Any, difference: Any, limit: Any) -> Any:
    over = builder.fcmp_unordered(">", magnitude_of(builder, difference),
                                  everywhere(builder, limit, WIDTH))
    bits = ir.IntType(WIDTH)
    return builder.icmp_unsigned("!=", builder.bitcast(over, bits), bits(0))


def _square_limit(builder: Any, threshold: Any, channels: Any) -> Any:
    """Return what the sum of squares must not exceed; finite, for an infinite sum exceeds."""
    limit = builder.fmul(builder.fmul(threshold, threshold), builder.sitofp(channels, _FLOAT))
    finite = builder.fcmp_ordered("<", limit, _FLOAT(_LARGEST))
    return builder.select(finite, limit, _FLOAT(_LARGEST))


def _finish_narrow(typing: Any, like: Any, new: Any, step: Any, pixels: Any, count: Any,
                   ahead: Any, out: Any, out_step: Any, bias: Any, added: Any, added_step: Any,
                   channels: Any, code: Any, settings: Any, threshold: Any, rms: Any, fresh: Any,
                   marks: Any) -> Any:
    """Apply the rule to rows of up to `WIDTH` channels; return how many were written.

    Args:
        like: an array of the maps' type.
        new, step: address of the first row, float32, and bytes from one to the next.
        pixels, count: address of the pixels, int32, of one lane, and how many, up to `MOST_ROWS`.
        ahead: how far ahead old rows are fetched; so many pixels follow.
        out, out_step: of the map that is written: its address, and bytes from pixel to pixel.
        bias, settings: addresses of float32 ``[channels]`` and ``[2, channels]``.
        added, added_step: of a residual; 0 for none.
        channels, code: of the rows, and of the activation.
        threshold, rms, fresh: of the lane; see `row.compare_row`. A fresh one is written.
        marks: address of the mask.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (_, new, step, pixels, count, ahead, out, out_step, bias, added, added_step, channels,
         code, settings, threshold, rms, fresh, marks) = args
        rows = _Rows(Row(builder, channels, like.dtype), new, step, pixels, count)
        after = builder.append_basic_block("activated")
        choice = builder.switch(code, after)
        for activation in CODES:
            block = builder.append_basic_block(f"rows{activation}")
            choice.add_case(ir.Constant(code.type, activation), block)
            builder.position_at_end(block)
            with builder.if_else(builder.icmp_signed("!=", added, _INT(0))) as (yes, no):
                with yes:
                    rows.activate(activation, bias, settings, added, added_step)
                with no:
                    rows.activate(activation, bias, settings, None, added_step)
            builder.branch(after)
        builder.position_at_end(after)
        exceeding = cgutils.alloca_once_value(builder, _INT(0))
        # Where nothing is held back, what differs at all is told without a sum.
        summed = builder.and_(rms, builder.fcmp_ordered(">", threshold, _FLOAT(0.0)))
        with builder.if_else(summed) as (yes, no):
            with yes:
                rows.compare(True, _square_limit(builder, threshold, channels), out, out_step,
                             ahead, exceeding)
            with no:
                rows.compare(False, threshold, out, out_step, ahead, exceeding)
        every = builder.lshr(_INT(-1), builder.sub(_INT(MOST_ROWS), count))
        chosen = builder.select(fresh, every, builder.load(exceeding))
        with builder.if_then(builder.icmp_signed("!=", chosen, _INT(0))):
            rows.write(chosen, out, out_step, marks)
        return builder.ctpop(chosen)

    return types.intp(like, *[types.intp] * 13, types.float32, types.boolean, types.boolean,
                      types.intp), codegen


finish_narrow: Any = intrinsic(_finish_narrow)
