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

from deltaconvert.backends.cpu.compiling.vectors import CACHE_LINE, WIDTH
from deltaconvert.backends.cpu.rows.activations import CODES, apply

_FLOAT, _INT, _INDEX, _BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_VECTOR, _MASK = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_BIT, WIDTH)
_BITS, _SHORTS = ir.VectorType(_INDEX, WIDTH), ir.VectorType(ir.IntType(16), WIDTH)
_LANES = ir.Constant(_BITS, list(range(WIDTH)))
_FUSE = ("contract",)
# The sum of squares from which a norm exceeds a threshold, or does not, without doubt: rounding
# moves either by less than this share of it, unless they are so small that digits are lost.
_DOUBT, _TINY, _HUGE = 2.0**-20, 2.0**-100, 3e38


class Row:
    """Generates a loop over a row's numbers, whole vectors and a masked rest.

    Args:
        builder: of the code.
        channels: of the row.
        stored: the type of the maps' numbers, see `storage`.
    """

    def __init__(self, builder: Any, channels: Any, stored: Any) -> None:
        self.builder, self.channels = builder, channels
        self.narrow = stored == types.uint16

    def each(self, body: Callable[[Any, Any], None]) -> None:
        """Generate ``body(first number, mask or nothing)``."""
        builder = self.builder
        whole = builder.sdiv(self.channels, _INT(WIDTH))
        with cgutils.for_range(builder, whole) as over:
            body(builder.mul(over.index, _INT(WIDTH)), None)
        done = builder.mul(whole, _INT(WIDTH))
        rest = builder.sub(self.channels, done)
        with builder.if_then(builder.icmp_signed(">", rest, _INT(0))):
            body(done, first_of(builder, rest))

    def load(self, address: Any, first: Any, mask: Any) -> Any:
        """Load a vector of float32; zeros where it is masked."""
        return self._load(address, first, mask, _VECTOR, "f32", 4)

    def load_stored(self, address: Any, first: Any, mask: Any) -> Any:
        """Load a vector of a map's numbers, as float32."""
        if not self.narrow:
            return self.load(address, first, mask)
        builder = self.builder
        upper = builder.zext(self._load(address, first, mask, _SHORTS, "i16", 2), _BITS)
        return builder.bitcast(builder.shl(upper, _all(_BITS, 16)), _VECTOR)

    def store(self, vector: Any, address: Any, first: Any, mask: Any) -> None:
        """Store a vector of float32, but for what is masked."""
        self._store(vector, address, first, mask, "f32", 4)

    def store_stored(self, vector: Any, address: Any, first: Any, mask: Any) -> None:
        """Store a vector to a map; its numbers are `rounded`."""
        if not self.narrow:
            self.store(vector, address, first, mask)
            return
        builder = self.builder
        upper = builder.lshr(builder.bitcast(vector, _BITS), _all(_BITS, 16))
        self._store(builder.trunc(upper, _SHORTS), address, first, mask, "i16", 2)

    def rounded(self, vector: Any) -> Any:
        """Return numbers as a map will hold them: to nearest even, NaN stays NaN."""
        if not self.narrow:
            return vector
        builder = self.builder
        bits = builder.bitcast(vector, _BITS)
        odd = builder.and_(builder.lshr(bits, _all(_BITS, 16)), _all(_BITS, 1))
        nearest = builder.add(bits, builder.add(odd, _all(_BITS, 0x7FFF)))
        no_number = builder.fcmp_unordered("uno", vector, vector)
        quiet = builder.or_(bits, _all(_BITS, 0x400000))
        upper = builder.and_(builder.select(no_number, quiet, nearest), _all(_BITS, 0xFFFF0000))
        return builder.bitcast(upper, _VECTOR)

    def prefetch(self, address: Any, first: Any) -> None:
        """Fetch what a vector of a map will be loaded from."""
        builder, size = self.builder, 2 if self.narrow else 4
        byte = ir.IntType(8).as_pointer()
        fetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX]),
            "llvm.prefetch.p0")
        for part in range(0, size * WIDTH, CACHE_LINE):
            place = builder.add(builder.add(address, builder.mul(first, _INT(size))), _INT(part))
            builder.call(fetch, [builder.inttoptr(place, byte), _INDEX(0), _INDEX(3), _INDEX(1)])

    def _load(self, address: Any, first: Any, mask: Any, kind: Any, name: str, size: int) -> Any:
        builder, place = self.builder, self._place(address, first, kind, size)
        if mask is None:
            return builder.load(place, align=size)
        load = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [place.type, _INDEX, _MASK, kind]),
            f"llvm.masked.load.v{WIDTH}{name}.p0")
        return builder.call(load, [place, _INDEX(size), mask, ir.Constant(kind, None)])

    def _store(self, vector: Any, address: Any, first: Any, mask: Any, name: str,
               size: int) -> None:
        builder, place = self.builder, self._place(address, first, vector.type, size)
        if mask is None:
            builder.store(vector, place, align=size)
            return
        store = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [vector.type, place.type, _INDEX, _MASK]),
            f"llvm.masked.store.v{WIDTH}{name}.p0")
        builder.call(store, [vector, place, _INDEX(size), mask])

    def _place(self, address: Any, first: Any, kind: Any, size: int) -> Any:
        offset = self.builder.mul(first, _INT(size))
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())


def first_of(builder: Any, count: Any) -> Any:
    """Return a mask of so many numbers of a vector; none if negative, at most all."""
    count = builder.trunc(count, _INDEX)  # one comparison of whole vectors
    return builder.icmp_signed("<", _LANES, everywhere(builder, count, WIDTH))


def _all(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * WIDTH)


def everywhere(builder: Any, number: Any, width: int) -> Any:
    """Return a vector with one number in all places."""
    kind = ir.VectorType(number.type, width)
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _INDEX(0)), nothing,
                                  ir.Constant(ir.VectorType(_INDEX, width), None))


def _compare(typing: Any, like: Any, new: Any, old: Any, bias: Any, added: Any, channels: Any,
             code: Any, settings: Any, threshold: Any, rms: Any, old_ahead: Any, added_ahead: Any
             ) -> Any:
    """Finish a row in place; return whether it differs from the old by more than the threshold.

    Compared is the row as it would be stored.

    Args:
        like: an array of the maps' type.
        new, bias: addresses of float32 ``[channels]``.
        old, added: addresses of a map's numbers; 0 for nothing added.
        channels: of the row.
        code, settings: of the activation; the address of float32 ``[2, channels]``.
        threshold, rms: the test. Equal numbers differ by 0 (so do two equal infinities), and
            NaN is never within.
        old_ahead, added_ahead: addresses of rows to come.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (_, new, old, bias, added, channels, code, settings, threshold, rms, old_ahead,
         added_ahead) = args
        row = Row(builder, channels, like.dtype)
        square = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None))
        beyond = cgutils.alloca_once_value(builder, ir.Constant(_MASK, None))
        limit = everywhere(builder, threshold, WIDTH)

        def loop(activation: int, adds: bool) -> None:
            def body(first: Any, mask: Any) -> None:
                number = builder.fadd(row.load(new, first, mask), row.load(bias, first, mask))
                if adds:
                    number = builder.fadd(number, row.load_stored(added, first, mask))
                    row.prefetch(added_ahead, first)
                number = row.rounded(apply(
                    builder, activation, number, lambda i: row.load(
                        settings, builder.add(first, builder.mul(channels, _INT(i))), mask)))
                row.store(number, new, first, mask)
                was = row.load_stored(old, first, mask)
                row.prefetch(old_ahead, first)
                difference = difference_of(builder, number, was, mask)
                product = builder.fmul(difference, difference, flags=_FUSE)
                builder.store(builder.fadd(product, builder.load(square), flags=_FUSE), square)
                over = builder.fcmp_unordered(">", magnitude_of(builder, difference), limit)
                builder.store(builder.or_(over, builder.load(beyond)), beyond)
            row.each(body)

        _choose(builder, code, added, loop)
        found = cgutils.alloca_once(builder, _BIT)
        with builder.if_else(rms) as (root, largest):
            with root:
                builder.store(_outside(builder, builder.load(square), channels, threshold), found)
            with largest:
                builder.store(_any(builder, builder.load(beyond)), found)
        return builder.load(found)

    return types.boolean(like, *[types.intp] * 7, types.float32, types.boolean, types.intp,
                         types.intp), codegen


def difference_of(builder: Any, number: Any, was: Any, mask: Any) -> Any:
    """Return new numbers less the old; 0 where they are equal, or not of the row."""
    zero = ir.Constant(_VECTOR, None)
    difference = builder.select(builder.fcmp_ordered("==", number, was), zero,
                                builder.fsub(number, was))
    return difference if mask is None else builder.select(mask, difference, zero)


def magnitude_of(builder: Any, numbers: Any) -> Any:
    """Return numbers without their sign."""
    absolute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.fabs.v{WIDTH}f32")
    return builder.call(absolute, [numbers])


def _choose(builder: Any, code: Any, added: Any, loop: Callable[[int, bool], None]) -> None:
    """Generate ``loop(activation, whether a residual is added)`` for all, and the choice."""
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


def _outside(builder: Any, squares: Any, channels: Any, threshold: Any) -> Any:
    """Whether the root of the squares' mean is not within the threshold.

    Division and root take as long as half of a short row: they are left out where the sum alone
    says so.
    """
    add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]),
        f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    total = builder.call(add, [_FLOAT(0.0), squares], fastmath=("reassoc",))
    count = builder.sitofp(channels, _FLOAT)
    limit = builder.fmul(builder.fmul(threshold, threshold), count)
    first, last, doubts = _doubtful(builder, limit)
    bits = builder.bitcast(total, _INDEX)  # in the order of what they say, NaN last
    found = cgutils.alloca_once(builder, _BIT)
    builder.store(builder.icmp_unsigned(">", bits, last), found)
    # One comparison: a branch for each side of the threshold could not be guessed.
    doubtful = builder.icmp_unsigned("<", builder.sub(bits, first), doubts)
    with builder.if_then(doubtful, likely=False):
        root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32")
        norm = builder.call(root, [builder.fdiv(total, count)])
        builder.store(builder.fcmp_unordered(">", norm, threshold), found)
    return builder.load(found)


def _doubtful(builder: Any, limit: Any) -> tuple[Any, Any, Any]:
    """Return the first and the last sum that may be either side of a limit, and how many these are.

    As the bits of floats; all of them, where the limit is NaN.
    """
    tiny = builder.fcmp_ordered("<", limit, _FLOAT(_TINY))
    above = builder.select(tiny, _FLOAT(_TINY), builder.fmul(limit, _FLOAT(1 + _DOUBT)))
    below = builder.fmul(limit, _FLOAT(1 - _DOUBT))
    huge = builder.fcmp_ordered(">", below, _FLOAT(_HUGE))
    below = builder.select(tiny, _FLOAT(0.0), builder.select(huge, _FLOAT(_HUGE), below))
    last, within = builder.bitcast(above, _INDEX), builder.bitcast(below, _INDEX)
    none = builder.fcmp_unordered("uno", limit, limit)
    first = builder.select(none, _INDEX(0), builder.add(within, _INDEX(1)))
    return first, last, builder.select(none, _INDEX(-1), builder.sub(last, within))


def _any(builder: Any, mask: Any) -> Any:
    bits = builder.bitcast(mask, ir.IntType(WIDTH))
    return builder.icmp_unsigned("!=", bits, ir.IntType(WIDTH)(0))


def _write(typing: Any, like: Any, new: Any, old: Any, channels: Any) -> Any:
    """Write a row that was compared over the old one."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, new, old, channels = args
        row = Row(builder, channels, like.dtype)
        row.each(lambda first, mask: row.store_stored(row.load(new, first, mask), old, first,
                                                      mask))
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), codegen


def _load_row(typing: Any, like: Any, source: Any, new: Any, channels: Any) -> Any:
    """Write a map's numbers to a row; addresses of both."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, new, channels = args
        row = Row(builder, channels, signature.args[0].dtype)
        row.each(lambda first, mask: row.store(row.load_stored(source, first, mask), new, first,
                                               mask))
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), codegen


def _load_each(typing: Any, like: Any, source: Any, source_step: Any, pixels: Any, count: Any,
               new: Any, new_step: Any, channels: Any) -> Any:
    """Write the numbers of a map's pixels to rows.

    Args:
        like: an array of the map's type.
        source, source_step: address of the first pixel's numbers, and bytes to the next's.
        pixels, count: address of int32, and how many.
        new, new_step: address of the first row, and bytes to the next.
        channels: numbers of each.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, source_step, pixels, count, new, new_step, channels = args
        row = Row(builder, channels, signature.args[0].dtype)
        with cgutils.for_range(builder, count) as over:
            place = builder.add(pixels, builder.mul(over.index, _INT(4)))
            pixel = builder.sext(builder.load(builder.inttoptr(place, _INDEX.as_pointer())), _INT)
            there = builder.add(source, builder.mul(pixel, source_step))
            here = builder.add(new, builder.mul(over.index, new_step))
            row.each(lambda first, mask: row.store(row.load_stored(there, first, mask), here,
                                                   first, mask))
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 7), codegen


def _load_other(typing: Any, like: Any, source: Any, new: Any, channels: Any) -> Any:
    """Write every other number of a map to a row."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, new, channels = args
        row = Row(builder, channels, signature.args[0].dtype)
        # The second half begins a number earlier: what lies behind the last is not the pixel's.
        other = [*range(0, WIDTH, 2), *range(WIDTH + 1, 2 * WIDTH, 2)]
        chosen = ir.Constant(_BITS, other)

        def body(first: Any, mask: Any) -> None:
            at, masks = builder.mul(first, _INT(2)), [mask, mask]
            if mask is not None:
                last = builder.sub(builder.mul(builder.sub(channels, first), _INT(2)), _INT(1))
                masks = [first_of(builder, builder.sub(last, _INT(begin)))
                         for begin in (0, WIDTH - 1)]
            halves = [row.load_stored(source, builder.add(at, _INT(begin)), part)
                      for begin, part in zip((0, WIDTH - 1), masks, strict=True)]
            row.store(builder.shuffle_vector(*halves, chosen), new, first, mask)

        row.each(body)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), codegen


def _multiply_row(typing: Any, like: Any, source: Any, new: Any, channels: Any) -> Any:
    """Multiply a row with a map's numbers."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, new, channels = args
        row = Row(builder, channels, signature.args[0].dtype)

        def body(first: Any, mask: Any) -> None:
            number = builder.fmul(row.load(new, first, mask), row.load_stored(source, first, mask))
            row.store(number, new, first, mask)

        row.each(body)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), codegen


def _add_row(typing: Any, like: Any, source: Any, factor: Any, new: Any, channels: Any) -> Any:
    """Add a multiple of a map's numbers to a row."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, factor, new, channels = args
        row, factors = Row(builder, channels, signature.args[0].dtype), everywhere(
            builder, factor, WIDTH)

        def body(first: Any, mask: Any) -> None:
            product = builder.fmul(factors, row.load_stored(source, first, mask), flags=_FUSE)
            number = builder.fadd(row.load(new, first, mask), product, flags=_FUSE)
            row.store(number, new, first, mask)

        row.each(body)
        return context.get_dummy_value()

    return types.void(like, types.intp, types.float32, types.intp, types.intp), codegen


def _trailing_zeros(typing: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is set."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], _BIT(1))

    return types.int64(types.uint64), codegen


compare_row: Any = intrinsic(_compare)
load_row: Any = intrinsic(_load_row)
load_each: Any = intrinsic(_load_each)
load_other: Any = intrinsic(_load_other)
multiply_row: Any = intrinsic(_multiply_row)
add_row: Any = intrinsic(_add_row)
trailing_zeros: Any = intrinsic(_trailing_zeros)
write_row: Any = intrinsic(_write)
