"""The transforms of Winograd's tiles, there and back, in LLVM's own vector types.

No compiler vectorises a loop with 16 arrays in and 16 out.
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
from deltaconvert.backends.cpu.compiling.vectors import WIDTH

HELD = 4  # pixels of a tile

_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def _vector(width: int) -> Any:
    return ir.VectorType(_FLOAT, width) if width > 1 else _FLOAT


def _at(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _addresses(builder: Any, table: Any, count: int) -> list[Any]:
    return [builder.load(_at(builder, table, _INT(8 * i), _INT)) for i in range(count)]


def _to_side(builder: Any, d: list[Any]) -> list[Any]:
    """Return ``B^T d`` of four numbers, or of three."""
    if len(d) == 3:
        return [builder.fsub(d[0], d[1]), d[1], builder.fsub(d[1], d[2])]
    return [builder.fsub(d[0], d[2]), builder.fadd(d[1], d[2]),
            builder.fsub(d[2], d[1]), builder.fsub(d[1], d[3])]


def _from_side(builder: Any, m: list[Any]) -> list[Any]:
    """Return ``A^T m`` of four places, or of three."""
    if len(m) == 3:
        return [builder.fadd(m[0], m[1]), builder.fsub(m[1], m[2])]
    return [builder.fadd(m[0], builder.fadd(m[1], m[2])),
            builder.fsub(builder.fsub(m[1], m[2]), m[3])]


def _transform(width: int, side: int) -> Any:
    """Make the loop over channels of ``B^T d B``, so many channels at a time."""
    kind = _vector(width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, first, count, out, place_step = args
        taps = _addresses(builder, table, side * side)
        with cgutils.for_range(builder, count) as over_channels:
            offset = builder.add(first, builder.mul(over_channels.index, _INT(4 * width)))
            d = [builder.load(_at(builder, tap, offset, kind), align=4) for tap in taps]
            columns = [_to_side(builder, d[x::side]) for x in range(side)]
            target = builder.add(out, offset)
            for y in range(side):
                for x, number in enumerate(_to_side(builder, [c[y] for c in columns])):
                    step = builder.mul(place_step, _INT(side * y + x))
                    builder.store(number, _at(builder, target, step, kind), align=4)
        return context.get_dummy_value()

    @intrinsic
    def transform(typing, table, first, count, out, place_step):
        return types.void(*[types.intp] * 5), codegen

    return transform


def _transform_back(width: int, side: int) -> Any:
    """Make the loop over channels of ``A^T m A``; it returns whether a number is not finite."""
    kind = _vector(width)
    zero = ir.Constant(kind, None) if width > 1 else _FLOAT(0.0)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        products, place_step, first, count, table = args
        rows = _addresses(builder, table, HELD)
        check = cgutils.alloca_once_value(builder, zero)

        with cgutils.for_range(builder, count) as over_channels:
            offset = builder.add(first, builder.mul(over_channels.index, _INT(4 * width)))
            source = builder.add(products, offset)
            m = [builder.load(_at(builder, source, builder.mul(place_step, _INT(i)), kind),
                              align=4) for i in range(side * side)]
            columns = [_from_side(builder, m[x::side]) for x in range(side)]
            numbers = [n for y in range(2) for n in _from_side(builder, [c[y] for c in columns])]
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


_SIDES = (3, 4)
_to_three, _to_four = (_transform(WIDTH, side) for side in _SIDES)
_to_three_singly, _to_four_singly = (_transform(1, side) for side in _SIDES)
_from_three, _from_four = (_transform_back(WIDTH, side) for side in _SIDES)
_from_three_singly, _from_four_singly = (_transform_back(1, side) for side in _SIDES)


@loop
def to_places(side, table, channels, out, place):
    """Write ``B^T d B`` of a patch, channel by channel.

    Args:
        side: places along a side of the patch, 3 or 4.
        table: address of its pixels' addresses, row by row.
        channels: of a pixel.
        out: address of the first place's numbers.
        place: bytes from a place to the next.
    """
    whole = channels // WIDTH
    done, rest = 4 * WIDTH * whole, channels - WIDTH * whole
    if side == 3:
        _to_three(table, 0, whole, out, place)
        _to_three_singly(table, done, rest, out, place)
    else:
        _to_four(table, 0, whole, out, place)
        _to_four_singly(table, done, rest, out, place)


@loop
def from_places(side, products, place, channels, table):
    """Write ``A^T m A`` to the rows of a tile's pixels; return whether a number is not finite.

    Args:
        side: as in `to_places`.
        products: address of the first place's numbers.
        place: bytes from a place to the next.
        channels: to write.
        table: address of four addresses.
    """
    whole = channels // WIDTH
    done, rest = 4 * WIDTH * whole, channels - WIDTH * whole
    if side == 3:
        bad = _from_three(products, place, 0, whole, table)
        return bad | _from_three_singly(products, place, done, rest, table)
    bad = _from_four(products, place, 0, whole, table)
    return bad | _from_four_singly(products, place, done, rest, table)
