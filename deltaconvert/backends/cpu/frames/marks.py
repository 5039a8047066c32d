"""Rows of marks, a byte each, in LLVM's own vector types.

Loops that a compiler vectorises go byte by byte through what is left behind their last whole
vector, which of a row of 40 or 80 pixels may be all.
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

_INT, _BYTE, _BIT, _INDEX = ir.IntType(64), ir.IntType(8), ir.IntType(1), ir.IntType(32)
_WIDTHS = (64, 8, 1)
SPARE = 1  # bytes behind a row that is read by `unite_every_other`


def _each(builder: Any, count: Any, body: Callable[[Any, int], None]) -> None:
    """Generate ``body(first byte, how many)`` for so many bytes: 64 at a time, then 8, then one."""
    done: Any = _INT(0)
    for width in _WIDTHS:
        pieces = builder.sdiv(builder.sub(count, done), _INT(width))
        with cgutils.for_range(builder, pieces) as over:
            body(builder.add(done, builder.mul(over.index, _INT(width))), width)
        done = builder.add(done, builder.mul(pieces, _INT(width)))


def _place(builder: Any, address: Any, offset: Any, width: int) -> Any:
    kind = ir.VectorType(_BYTE, width).as_pointer()
    return builder.inttoptr(builder.add(address, offset), kind)


def _unite(step: int) -> Any:
    def unite(typing: Any, marks: Any, others: Any, count: Any) -> Any:
        """Set so many marks, by their address, where the others are set."""
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            marks, others, count = args

            def body(first: Any, width: int) -> None:
                read = builder.mul(first, _INT(step))
                found = builder.load(_place(builder, others, read, step * width), align=1)
                chosen = ir.Constant(ir.VectorType(_INDEX, width), [*range(0, step * width, step)])
                found = builder.shuffle_vector(found, ir.Constant(found.type, None), chosen)
                out = _place(builder, marks, first, width)
                builder.store(builder.or_(builder.load(out, align=1), found), out, align=1)

            _each(builder, count, body)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), codegen
    return intrinsic(unite)


def _any(typing: Any, marks: Any, count: Any) -> Any:
    """Return whether any of so many marks is set."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        marks, count = args
        found = cgutils.alloca_once_value(builder, _BIT(0))

        def body(first: Any, width: int) -> None:
            vector = builder.load(_place(builder, marks, first, width), align=1)
            whole = ir.IntType(8 * width)
            here = builder.icmp_unsigned("!=", builder.bitcast(vector, whole), whole(0))
            builder.store(builder.or_(builder.load(found), here), found)

        _each(builder, count, body)
        return builder.load(found)

    return types.boolean(types.intp, types.intp), codegen


unite_marks: Any = _unite(1)
unite_every_other: Any = _unite(2)
any_mark: Any = intrinsic(_any)
