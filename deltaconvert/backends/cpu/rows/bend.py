"""The pass that activates a chunk of rows by one of the `curves`, while it is in the cache."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deltaconvert.backends.cpu.compiling.jit import entry, loop
from deltaconvert.backends.cpu.compiling.native import Longs2, layout, read
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.rows import curves
from deltaconvert.backends.cpu.rows.row import Row, everywhere


class Bend(NamedTuple):
    """Which curve, and of which rows.

    Args:
        rows: see `finish.Ending`.
        code, first, second: see `curves.Curve`.
    """

    rows: Longs2
    code: int
    first: np.float32
    second: np.float32


_BEND = layout(Bend)


@entry
def bend_rows(address, worker):
    """Activate the rows that a worker was told."""
    task = read(address, _BEND)
    bend_all(task, task.rows[worker, 0], task.rows[worker, 1], 4 * task.rows[worker, 2],
             task.rows[worker, 3])


@loop
def bend_all(task, start, count, step, channels):
    """Activate rows of float32 that lie so many bytes apart."""
    for i in range(count):
        bend_row(start + i * step, channels, task.code, task.first, task.second)


def _bend_row(typing: Any, new: Any, channels: Any, code: Any, first: Any, second: Any) -> Any:
    """Activate a row in place."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        new, channels, code, *settings = args
        row = Row(builder, channels, types.float32)
        vectors = [everywhere(builder, setting, WIDTH) for setting in settings]
        after = builder.append_basic_block("bent")
        choice = builder.switch(code, after)
        for curve in curves.CODES:
            block = builder.append_basic_block(f"curve{curve}")
            choice.add_case(ir.Constant(code.type, curve), block)
            builder.position_at_end(block)
            row.each(lambda first, mask, curve=curve: row.store(  # type: ignore[misc]
                curves.bend(builder, curve, row.load(new, first, mask), vectors), new, first,
                mask))
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3, types.float32, types.float32), codegen


bend_row: Any = intrinsic(_bend_row)
