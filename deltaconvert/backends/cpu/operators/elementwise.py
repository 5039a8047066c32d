"""Sums and products of maps, gates and constants, norms, and activations that stand alone."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import Floats, Floats3
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import (
    footprints_of,
    head_of,
    list_scratch,
    whole_refusal,
)
from deltaconvert.backends.cpu.frames.parts import Parts
from deltaconvert.backends.cpu.frames.steps import (
    CompiledStep,
    chunk_rows,
    row_scratch,
    whole_vectors,
)
from deltaconvert.backends.cpu.maps.flat import flat, flat_map, rows_of
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.maps.taps import Taps, taps_of
from deltaconvert.backends.cpu.operators.scaling import Scaling, scaling_of
from deltaconvert.backends.cpu.rows.activations import compiled_activation
from deltaconvert.backends.cpu.rows.curves import compiled_curve
from deltaconvert.backends.cpu.rows.finish import Ending, ending_of
from deltaconvert.backends.cpu.rows.row import add_row, load_each, load_row, multiply_row
from deltaconvert.backends.cpu.rows.rowwise import rowwise
from deltaconvert.nodes import DeltaNode, Slot

_ADD, _MULTIPLY, _COPY, _SCALE = range(4)
_CODES = {"add": _ADD, "sub": _ADD, "mul": _MULTIPLY}


class Elementwise(NamedTuple):
    """``x + factor * y``, ``x * y``, ``x`` or ``x * scale``.

    Args:
        parts, ending: of its step.
        code: which.
        x, y: maps, or gates that are read from everywhere; without numbers for a constant.
        x_channels, y_channels: of the maps; 1 is read by every channel.
        x_constant, y_constant: else.
        factor: of ``y`` in a sum.
        scale: float32 ``[C]``.
        new: float32 ``[workers, rows, C]``, in whole vectors.
    """

    parts: Parts
    ending: Ending
    code: int
    x: Taps
    y: Taps
    x_channels: int
    y_channels: int
    x_constant: np.float32
    y_constant: np.float32
    factor: np.float32
    scale: Floats
    new: Floats3


def refusal(node: DeltaNode) -> str | None:
    """Return why this node must run by its pixelwise function."""
    about = node.about
    assert about.operator is not None
    if about.rule != "local" and (reason := whole_refusal(node)):
        return reason
    if about.operator.is_activation:
        known = compiled_activation(_activation(node)) or compiled_curve(_activation(node))
        return None if known else "the loops do not have this activation"
    if scaling_of(node):
        return None
    if about.operator.name not in _CODES or len(about.args) != 2:
        return "the loops do not have this operator"
    if not all(isinstance(a, Slot | int | float) for a in about.args):
        return "an operand is a constant tensor"
    return None


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of candidates and the rows of a chunk."""
    assert node.about.output.shape is not None
    channels = whole_vectors(node.about.output.shape[1])
    return [*list_scratch(node), row_scratch("new", chunk_rows(channels), channels, workers)]


def bind(node: DeltaNode, weights: None, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a sum, a product or an activation."""
    out = flat_map(buffers.output.value)
    channels = whole_vectors(out.channels)
    rows = chunk_rows(channels)
    head = head_of(node, buffers, engine, 0.1 * out.channels + 20, buffers.output.mask.numel())
    residual = _residual(node, buffers)
    code, (x, y), factor, activation, scaling = _formula(node, residual is not None)
    x, x_channels, x_constant = _operand(node, buffers, x)
    y, y_channels, y_constant = _operand(node, buffers, y)
    scale, shift = (scaling.scale, scaling.shift) if scaling else (None, None)
    task = Elementwise(
        head.parts, ending_of(node, buffers, head, engine, bias=shift, residual=residual,
                              activation=activation),
        code, x, y, x_channels, y_channels, x_constant, y_constant, np.float32(factor),
        np.empty(0, np.float32) if scale is None else flat(scale),
        rows_of(buffers.scratch["cpu.new"], engine.workers.threads, rows, channels))
    return CompiledStep(node, engine, head, COMBINE.of(out.data), task)


def _formula(node: DeltaNode, has_residual: bool
             ) -> tuple[int, Sequence[Any], float, Any, Scaling | None]:
    """Return its code, the operands, the factor, the activation behind it, and the scaling."""
    about = node.about
    assert about.operator is not None
    name, behind = about.operator.name, about.params.get("activation")
    if about.operator.is_activation:
        return _COPY, (about.args[0], 0.0), 1, _activation(node), None
    if has_residual:
        return _COPY, (about.args[0], 0.0), 1, behind, None
    if scaling := scaling_of(node):
        return _SCALE, (scaling.x, 0.0), 1, behind, scaling
    factor = about.params.get("alpha", 1) * (-1 if name == "sub" else 1)
    return _CODES[name], about.args, factor, behind, None


def _residual(node: DeltaNode, buffers: Buffers) -> Tensor | None:
    """Return what is added to a map as it is, which the end of a row does on its way."""
    about = node.about
    if about.operator is None or about.operator.name != "add" or about.params.get("alpha", 1) != 1:
        return None
    x, y = about.args
    for operand in (x, y):
        if not isinstance(operand, Slot) or about.inputs[operand.index].shape != about.output.shape:
            return None
    return buffers.inputs[y.index].value


def _activation(node: DeltaNode) -> tuple[Any, ...]:
    about = node.about
    assert about.operator is not None
    return about.operator.name, *about.args[1:], *about.params.values()


def _operand(node: DeltaNode, buffers: Buffers, argument: Any) -> tuple[Taps, int, np.float32]:
    if not isinstance(argument, Slot):
        nowhere, nothing = np.zeros((1, 1), np.int32), flat_map(buffers.output.value).data[:0]
        return Taps(nothing, 0, 0, 0, nowhere, nowhere, True), 1, np.float32(argument)
    source = flat_map(buffers.inputs[argument.index].value)
    return (taps_of(source, footprints_of(node)[argument.index]), source.channels,
            np.float32(0))


@loop
def compute_rows(task, pixels, new, worker):
    """Load the first operand, and combine it with the second."""
    load_rows(task.x, task.x_channels, task.x_constant, pixels, new)
    if task.code == _SCALE:
        scale_rows(task.scale, pixels.shape[0], new)
    elif task.code != _COPY:
        combine_rows(task.code, task.factor, task.y, task.y_channels, task.y_constant, pixels, new)


COMBINE = rowwise(Elementwise, compute_rows)


@loop
def place_of(taps, pixel):
    """Return where the numbers of the one pixel lie that an output pixel reads.

    Callers ask for what is none of their own, nor a gate of the first lane: a call with so many
    arguments takes longer than the rest of a short row.
    """
    height_out, width_out = taps.rows.shape[0], taps.cols.shape[0]
    y, x = pixel // width_out % height_out, pixel % width_out
    line = pixel // (height_out * width_out) * taps.height + taps.rows[y, 0]
    return (line * taps.width + taps.cols[x, 0]) * taps.step


@loop
def read_by_all(taps):
    """Return how many output pixels read the first pixel and no other: a gate's, of a lane."""
    return taps.rows.shape[0] * taps.cols.shape[0] if taps.height * taps.width == 1 else 0


@loop
def load_rows(taps, channels, constant, pixels, new):
    """Write an operand's pixels to rows."""
    data, size, same, gate = (
        taps.data.ctypes.data, taps.data.itemsize, taps.same, read_by_all(taps))
    if same and channels > 1:
        load_each(taps.data, data, size * taps.step, pixels.ctypes.data, pixels.shape[0],
                  new.ctypes.data, 4 * new.shape[1], channels)
        return
    for i in range(pixels.shape[0]):
        row, pixel = new[i], np.int64(pixels[i])
        place = pixel * taps.step if same else 0 if pixel < gate else place_of(taps, pixel)
        if taps.data.shape[0] == 0:
            row[:] = constant
        elif channels == 1:
            row[:] = load(taps.data, place)
        else:
            load_row(taps.data, data + size * place, row.ctypes.data, channels)


@loop
def scale_rows(scale, count, new):
    """Multiply rows with a number for each channel."""
    for i in range(count):
        row = new[i]
        for c in range(scale.shape[0]):
            row[c] *= scale[c]


@loop
def combine_rows(code, factor, taps, channels, constant, pixels, new):
    """Add a multiple of an operand's pixels to rows, or multiply rows with them."""
    data, size, same, gate = (
        taps.data.ctypes.data, taps.data.itemsize, taps.same, read_by_all(taps))
    for i in range(pixels.shape[0]):
        row, pixel = new[i], np.int64(pixels[i])
        place = pixel * taps.step if same else 0 if pixel < gate else place_of(taps, pixel)
        if taps.data.shape[0] == 0 or channels == 1:
            one = load(taps.data, place) if taps.data.shape[0] != 0 else constant
            for c in range(row.shape[0]):
                row[c] = row[c] + factor * one if code == _ADD else row[c] * one
        elif code == _ADD:
            add_row(taps.data, data + size * place, factor, row.ctypes.data, channels)
        else:
            multiply_row(taps.data, data + size * place, row.ctypes.data, channels)
