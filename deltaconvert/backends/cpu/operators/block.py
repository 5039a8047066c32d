"""Sixteen pixels compared and copied channel by channel, whatever the strides, as vectors."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (intrinsics: Numba infers their types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PIXELS = 16
_INT, _INDEX = ir.IntType(64), ir.IntType(32)
_MASK = ir.VectorType(ir.IntType(1), PIXELS)


class _Line:
    """Generates loads and stores of one number of each pixel.

    Args:
        builder: of the code.
        size: bytes of a number.
        step: from a pixel to the next, in bytes.
    """

    def __init__(self, builder: Any, size: int, step: Any) -> None:
        self.builder, self.step = builder, step
        self.number = ir.IntType(8 * size)
        self.vector, self.size = ir.VectorType(self.number, PIXELS), size
        self.dense = builder.icmp_signed("==", step, _INT(size))

    def load(self, address: Any) -> Any:
        """Load a vector: as one where the pixels lie side by side, else number by number."""
        builder, found = self.builder, cgutils.alloca_once(self.builder, self.vector)
        with builder.if_else(self.dense) as (dense, apart):
            with dense:
                place = builder.inttoptr(address, self.vector.as_pointer())
                builder.store(builder.load(place, align=self.size), found)
            with apart:
                vector: Any = ir.Constant(self.vector, ir.Undefined)
                for k in range(PIXELS):
                    number = builder.load(self._place(address, k), align=self.size)
                    vector = builder.insert_element(vector, number, _INDEX(k))
                builder.store(vector, found)
        return builder.load(found)

    def store(self, vector: Any, address: Any) -> None:
        """Store one in the same way."""
        builder = self.builder
        with builder.if_else(self.dense) as (dense, apart):
            with dense:
                place = builder.inttoptr(address, self.vector.as_pointer())
                builder.store(vector, place, align=self.size)
            with apart:
                for k in range(PIXELS):
                    builder.store(builder.extract_element(vector, _INDEX(k)),
                                  self._place(address, k), align=self.size)

    def _place(self, address: Any, k: int) -> Any:
        where = self.builder.add(address, self.builder.mul(self.step, _INT(k)))
        return self.builder.inttoptr(where, self.number.as_pointer())


def _move_block(typing: Any, like: Any, source: Any, step: Any, channel_step: Any, out: Any,
                out_step: Any, out_channel_step: Any, channels: Any) -> Any:
    """Copy all channels of sixteen pixels; return a bit for each pixel that differed, as bits do.

    Args:
        like: an array of the maps' type.
        source, step, channel_step: address of the first number, and bytes from a pixel and from a
            channel to the next.
        out, out_step, out_channel_step: the same of where they go.
        channels: how many.
    """
    size = like.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, step, channel_step, out, out_step, out_channel_step, channels = args
        lines = _Line(builder, size, step), _Line(builder, size, out_step)
        differing = cgutils.alloca_once_value(builder, ir.Constant(_MASK, None))
        builder.store(ir.Constant(_MASK, None), differing)
        with cgutils.for_range(builder, channels) as over:
            here = builder.add(source, builder.mul(over.index, channel_step))
            there = builder.add(out, builder.mul(over.index, out_channel_step))
            new, old = lines[0].load(here), lines[1].load(there)
            unlike = builder.icmp_unsigned("!=", new, old)
            builder.store(builder.or_(builder.load(differing), unlike), differing)
            with builder.if_then(_bits(builder, unlike, _MASK.count)):
                lines[1].store(new, there)
        found = builder.bitcast(builder.load(differing), ir.IntType(PIXELS))
        return builder.zext(found, _INT)

    return types.int64(like, *[types.intp] * 7), codegen


def _bits(builder: Any, mask: Any, count: int) -> Any:
    kind = ir.IntType(count)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, kind), kind(0))


move_block: Any = intrinsic(_move_block)
