"""The end of one row, in LLVM's own vector types: add, activate, compare with the old, write.

A loop that a compiler vectorises runs over 64 numbers at a time and leaves the rest to single
ones; rows of 16 to 120 channels are nothing but rest. Here the last numbers are a vector with
some places masked. While one row is compared, those of pixels to come are fetched.
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

from deltaconvert.backends.cpu.activations import CODES, apply
from deltaconvert.backends.cpu.kernel import CACHE_LINE, WIDTH

_FLOAT, _INT, _INDEX, _BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_VECTOR, _MASK = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_BIT, WIDTH)
_LANES = ir.Constant(ir.VectorType(_INT, WIDTH), list(range(WIDTH)))
_FUSE = ("contract",)


class _Row:
    """Generates a loop over a row's numbers, whole vectors and a masked rest."""

    def __init__(self, builder: Any, channels: Any) -> None:
        self.builder, self.channels = builder, channels

    def each(self, body: Callable[[Any, Any], None]) -> None:
        """Generate ``body(offset in bytes, mask or nothing)``."""
        builder = self.builder
        whole = builder.sdiv(self.channels, _INT(WIDTH))
        with cgutils.for_range(builder, whole) as over:
            body(builder.mul(over.index, _INT(4 * WIDTH)), None)
        done = builder.mul(whole, _INT(WIDTH))
        rest = builder.sub(self.channels, done)
        with builder.if_then(builder.icmp_signed(">", rest, _INT(0))):
            mask = builder.icmp_signed("<", _LANES, everywhere(builder, rest, WIDTH))
            body(builder.mul(done, _INT(4)), mask)

    def load(self, address: Any, offset: Any, mask: Any) -> Any:
        """Load a vector; zeros where it is masked."""
        builder, place = self.builder, self._place(address, offset)
        if mask is None:
            return builder.load(place, align=4)
        load = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [place.type, _INDEX, _MASK, _VECTOR]),
            f"llvm.masked.load.v{WIDTH}f32.p0")
        return builder.call(load, [place, _INDEX(4), mask, ir.Constant(_VECTOR, None)])

    def store(self, vector: Any, address: Any, offset: Any, mask: Any) -> None:
        """Store a vector, but for what is masked."""
        builder, place = self.builder, self._place(address, offset)
        if mask is None:
            builder.store(vector, place, align=4)
            return
        store = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [_VECTOR, place.type, _INDEX, _MASK]),
            f"llvm.masked.store.v{WIDTH}f32.p0")
        builder.call(store, [vector, place, _INDEX(4), mask])

    def prefetch(self, address: Any, offset: Any) -> None:
        """Fetch what a vector will be loaded from."""
        builder = self.builder
        byte = ir.IntType(8).as_pointer()
        fetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX]),
            "llvm.prefetch.p0")
        for part in range(0, 4 * WIDTH, CACHE_LINE):
            place = builder.inttoptr(builder.add(builder.add(address, offset), _INT(part)), byte)
            builder.call(fetch, [place, _INDEX(0), _INDEX(3), _INDEX(1)])

    def _place(self, address: Any, offset: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(address, offset), _VECTOR.as_pointer())


def everywhere(builder: Any, number: Any, width: int) -> Any:
    """Return a vector with one number in all places."""
    kind = ir.VectorType(number.type, width)
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _INDEX(0)), nothing,
                                  ir.Constant(ir.VectorType(_INDEX, width), None))


def _compare(typing: Any, new: Any, old: Any, bias: Any, added: Any, channels: Any, code: Any,
             slope: Any, threshold: Any, rms: Any, old_ahead: Any, added_ahead: Any) -> Any:
    """Finish a row in place; return whether it differs from the old by more than the threshold.

    Args:
        new, old, bias, added: addresses of float32 ``[channels]``; 0 for nothing added.
        channels: of the row.
        code, slope: of the activation.
        threshold, rms: the test. Equal numbers differ by 0 (so do two equal infinities), and
            NaN is never within.
        old_ahead, added_ahead: addresses of rows to come.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (new, old, bias, added, channels, code, slope, threshold, rms, old_ahead,
         added_ahead) = args
        row = _Row(builder, channels)
        square = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None))
        beyond = cgutils.alloca_once_value(builder, ir.Constant(_MASK, None))
        slopes, limit = (everywhere(builder, n, WIDTH) for n in (slope, threshold))
        magnitude = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.fabs.v{WIDTH}f32")

        def loop(activation: int, adds: bool) -> None:
            def body(offset: Any, mask: Any) -> None:
                number = builder.fadd(row.load(new, offset, mask), row.load(bias, offset, mask))
                if adds:
                    number = builder.fadd(number, row.load(added, offset, mask))
                    row.prefetch(added_ahead, offset)
                number = apply(builder, activation, number, slopes)
                row.store(number, new, offset, mask)
                was = row.load(old, offset, mask)
                row.prefetch(old_ahead, offset)
                zero = ir.Constant(_VECTOR, None)
                difference = builder.select(builder.fcmp_ordered("==", number, was), zero,
                                            builder.fsub(number, was))
                if mask is not None:
                    difference = builder.select(mask, difference, zero)
                product = builder.fmul(difference, difference, flags=_FUSE)
                builder.store(builder.fadd(product, builder.load(square), flags=_FUSE), square)
                size = builder.call(magnitude, [difference])
                over = builder.fcmp_unordered(">", size, limit)
                builder.store(builder.or_(over, builder.load(beyond)), beyond)
            row.each(body)

        after = builder.append_basic_block("finished")
        choice = builder.switch(code, after)
        for activation in CODES:
            block = builder.append_basic_block(f"activation{activation}")
            choice.add_case(ir.Constant(code.type, activation), block)
            builder.position_at_end(block)
            with builder.if_else(builder.icmp_signed("!=", added, _INT(0))) as (yes, no):
                with yes:
                    loop(activation, True)
                with no:
                    loop(activation, False)
            builder.branch(after)
        builder.position_at_end(after)
        return builder.select(rms, _outside(builder, builder.load(square), channels, threshold),
                              _any(builder, builder.load(beyond)))

    return types.boolean(*[types.intp] * 6, types.float32, types.float32, types.boolean,
                         types.intp, types.intp), codegen


def _outside(builder: Any, squares: Any, channels: Any, threshold: Any) -> Any:
    """Whether the root of the squares' mean is not within the threshold."""
    total = _FLOAT(0.0)
    for i in range(WIDTH):
        total = builder.fadd(total, builder.extract_element(squares, _INDEX(i)),
                             flags=("reassoc", "contract"))
    root = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32")
    mean = builder.fdiv(total, builder.sitofp(channels, _FLOAT))
    return builder.fcmp_unordered(">", builder.call(root, [mean]), threshold)


def _any(builder: Any, mask: Any) -> Any:
    bits = builder.bitcast(mask, ir.IntType(WIDTH))
    return builder.icmp_unsigned("!=", bits, ir.IntType(WIDTH)(0))


def _write(typing: Any, new: Any, old: Any, channels: Any) -> Any:
    """Write a row over the old one."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        new, old, channels = args
        row = _Row(builder, channels)
        row.each(lambda offset, mask: row.store(row.load(new, offset, mask), old, offset, mask))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


compare_row: Any = intrinsic(_compare)
write_row: Any = intrinsic(_write)
