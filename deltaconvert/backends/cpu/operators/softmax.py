"""Softmax over the channels of each pixel."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats3, Numbers
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, cached_rows, whole_vectors
from deltaconvert.backends.cpu.maps.flat import flat_map, rows_of
from deltaconvert.backends.cpu.operators import elementwise, pooling
from deltaconvert.backends.cpu.rows.activations import Numbers as Vector
from deltaconvert.backends.cpu.rows.activations import exp
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.row import Row, first_of, load_row
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode

refusal, plan = pooling.refusal, elementwise.plan

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_PLACES = ir.VectorType(ir.IntType(32), WIDTH)


class Softmax(NamedTuple):
    """A softmax.

    Args:
        parts, ending: of its step.
        data, step: of the map that is read, see `FlatMap`.
        new: float32 ``[workers, rows, C]``.
    """

    parts: Parts
    ending: Ending
    data: Numbers
    step: int
    new: Floats3


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a softmax."""
    source, out = flat_map(buffers.inputs[0].value), flat_map(buffers.output.value)
    head = head_of(node, buffers, engine, out.channels + 20, out.lanes * out.pixels)
    width = whole_vectors(out.channels)
    task = Softmax(head.parts, ending_of(node, buffers, head, engine), source.data, source.step,
                   rows_of(buffers.scratch["cpu.new"], engine.workers.threads,
                           cached_rows(width), width))
    return CompiledStep(node, engine, head, NORMALISE.of(source.data), task)


@loop
def normalise_rows(task, pixels, new, worker):
    """Load and normalise pixels."""
    data, channels = task.data, task.ending.channels
    for i in range(pixels.shape[0]):
        row = new[i].ctypes.data
        source = data.ctypes.data + data.itemsize * task.step * np.int64(pixels[i])
        if channels <= WIDTH:
            softmax_vector(data, source, row, channels)
        else:
            load_row(data, source, row, channels)
            softmax_row(row, channels)


NORMALISE = rowwise(Softmax, normalise_rows)


def _softmax_row(typing: Any, new: Any, channels: Any) -> Any:
    """Replace a row of float32 by its softmax; NaN anywhere makes all of it NaN."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        new, channels = args
        row = Row(builder, channels, types.float32)
        lowest = ir.Constant(_VECTOR, [float("-inf")] * WIDTH)
        most = cgutils.alloca_once_value(builder, lowest)
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None))
        builder.store(lowest, most)
        builder.store(ir.Constant(_VECTOR, None), total)

        def compare(first: Any, mask: Any) -> None:
            number, so_far = row.load(new, first, mask), builder.load(most)
            if mask is not None:
                number = builder.select(mask, number, lowest)
            larger = builder.fcmp_ordered(">", number, so_far)
            builder.store(builder.select(larger, number, so_far), most)

        row.each(compare)
        largest = _across(builder, builder.load(most), _larger)

        def raise_e(first: Any, mask: Any) -> None:
            number = Vector(builder, row.load(new, first, mask)) - Vector(builder, largest)
            power = exp(number).value
            row.store(power, new, first, mask)
            if mask is not None:
                power = builder.select(mask, power, ir.Constant(_VECTOR, None))
            builder.store(builder.fadd(builder.load(total), power), total)

        row.each(raise_e)
        whole = _across(builder, builder.load(total), lambda b, x, y: b.fadd(x, y))
        row.each(lambda first, mask: row.store(
            builder.fdiv(row.load(new, first, mask), whole), new, first, mask))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


def _softmax_vector(typing: Any, like: Any, source: Any, new: Any, channels: Any) -> Any:
    """Write the softmax of a map's numbers, no more than a vector of them, to a row of a vector.

    In registers: a load stalls behind the store of a part.
    """
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, new, channels = args
        row = Row(builder, channels, signature.args[0].dtype)
        mask, first = first_of(builder, channels), channels.type(0)
        lowest = ir.Constant(_VECTOR, [float("-inf")] * WIDTH)
        number = builder.select(mask, row.load_stored(source, first, mask), lowest)
        largest = _across(builder, number, _larger)
        power = exp(Vector(builder, number) - Vector(builder, largest)).value
        power = builder.select(mask, power, ir.Constant(_VECTOR, None))
        whole = _across(builder, power, lambda b, x, y: b.fadd(x, y))
        row.store(builder.fdiv(power, whole), new, first, None)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), codegen


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _across(builder: Any, vector: Any, combine: Any) -> Any:
    """Combine the numbers of a vector, in halves; return a vector with the result everywhere."""
    distance = WIDTH // 2
    while distance:
        places = [i ^ distance for i in range(WIDTH)]
        other = builder.shuffle_vector(vector, vector, ir.Constant(_PLACES, places))
        vector = combine(builder, vector, other)
        distance //= 2
    return vector


softmax_row: Any = intrinsic(_softmax_row)
softmax_vector: Any = intrinsic(_softmax_vector)
