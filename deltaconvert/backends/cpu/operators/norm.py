"""Norms over the channels of each pixel: layer norm, and by the root mean square."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats, Floats3, Numbers
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import head_of
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import CompiledStep, cached_rows, whole_vectors
from deltaconvert.backends.cpu.maps.flat import flat, flat_map, rows_of
from deltaconvert.backends.cpu.operators import elementwise
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.row import Row, everywhere, load_row
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode, Slot

plan = elementwise.plan

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


class Norm(NamedTuple):
    """A norm over channels.

    Args:
        parts, ending: of its step.
        data, step: of the map that is read, see `FlatMap`.
        weight, bias: float32 ``[C]``.
        eps: added to the mean of the squares.
        centred: the mean is taken off before.
        new: float32 ``[workers, rows, C]``.
    """

    parts: Parts
    ending: Ending
    data: Numbers
    step: int
    weight: Floats
    bias: Floats
    eps: np.float32
    centred: bool
    new: Floats3


def refusal(node: DeltaNode) -> str | None:
    """Return why this node must run by its pixelwise function."""
    changes = any(isinstance(argument, Slot) for argument in node.about.args[1:])
    return "its weights change from frame to frame" if changes else None


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a norm."""
    about, source, out = node.about, flat_map(buffers.inputs[0].value), flat_map(
        buffers.output.value)
    assert about.operator is not None
    weight, bias = (*about.args[1:], None)[:2]
    eps = about.params["eps"]
    head = head_of(node, buffers, engine, 0.3 * out.channels + 20, out.lanes * out.pixels)
    width = whole_vectors(out.channels)
    task = Norm(
        head.parts, ending_of(node, buffers, head, engine), source.data, source.step,
        _numbers(weight, 1.0, out.channels), _numbers(bias, 0.0, out.channels),
        np.float32(torch.finfo(torch.float32).eps if eps is None else eps),
        about.operator.name == "layer_norm2d",
        rows_of(buffers.scratch["cpu.new"], engine.workers.threads, cached_rows(width), width))
    return CompiledStep(node, engine, head, NORMALISE.of(source.data), task)


def _numbers(constant: Tensor | None, missing: float, channels: int) -> np.ndarray:
    if constant is None:
        return np.full(channels, missing, np.float32)
    return flat(constant.detach().float().contiguous())


@loop
def normalise_rows(task, pixels, new, worker):
    """Load and normalise pixels."""
    data, channels = task.data, task.ending.channels
    for i in range(pixels.shape[0]):
        row = new[i].ctypes.data
        load_row(data, data.ctypes.data + data.itemsize * task.step * np.int64(pixels[i]), row,
                 channels)
        normalise_row(row, channels, task.weight.ctypes.data, task.bias.ctypes.data, task.eps,
                      task.centred)


NORMALISE = rowwise(Norm, normalise_rows)


def _normalise_row(typing: Any, new: Any, channels: Any, weight: Any, bias: Any, eps: Any,
                   centred: Any) -> Any:
    """Normalise a row of float32 in place."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        new, channels, weight, bias, eps, centred = args
        row, count = Row(builder, channels, types.float32), builder.sitofp(channels, _FLOAT)
        nothing = ir.Constant(_VECTOR, None)
        mean = cgutils.alloca_once_value(builder, _FLOAT(0.0))
        builder.store(_FLOAT(0.0), mean)
        with builder.if_then(centred):
            total = _sum(row, lambda first, mask: row.load(new, first, mask))
            builder.store(builder.fdiv(total, count), mean)
        means = everywhere(builder, builder.load(mean), WIDTH)

        def square(first: Any, mask: Any) -> Any:
            number = builder.fsub(row.load(new, first, mask), means)
            number = number if mask is None else builder.select(mask, number, nothing)
            return builder.fmul(number, number)

        root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32")
        variance = builder.fadd(builder.fdiv(_sum(row, square), count), eps)
        scale = everywhere(
            builder, builder.fdiv(_FLOAT(1.0), builder.call(root, [variance])), WIDTH)

        def finish(first: Any, mask: Any) -> None:
            number = builder.fmul(builder.fsub(row.load(new, first, mask), means), scale)
            number = builder.fmul(number, row.load(weight, first, mask), flags=("contract",))
            number = builder.fadd(number, row.load(bias, first, mask), flags=("contract",))
            row.store(number, new, first, mask)

        row.each(finish)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32, types.boolean), codegen


def _sum(row: Row, number: Any) -> Any:
    """Add up a row's numbers, which are 0 where they are masked."""
    builder = row.builder
    sums = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None))
    builder.store(ir.Constant(_VECTOR, None), sums)
    row.each(lambda first, mask: builder.store(
        builder.fadd(builder.load(sums), number(first, mask)), sums))
    add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]),
        f"llvm.vector.reduce.fadd.v{WIDTH}f32")
    return builder.call(add, [_FLOAT(0.0), builder.load(sums)], fastmath=("reassoc",))


normalise_row: Any = intrinsic(_normalise_row)
