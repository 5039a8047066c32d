"""The rule at a chunk of candidates, in one pass while the new rows are in the cache.

Bias, residual and activation are added to what the product (or another loop) left, each row
is compared with the stored one, and replaces it where the norm of the difference exceeds
the lane's threshold.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Doubles,
    Flags,
    Floats,
    Floats2,
    Longs2,
    Numbers,
    call,
)
from deltaconvert.backends.cpu.compiling.vectors import WIDTH
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import Head
from deltaconvert.backends.cpu.maps.flat import FlatMap, flat, flat_map, floats_at
from deltaconvert.backends.cpu.rows.activations import Activation, compiled_activation
from deltaconvert.backends.cpu.rows.bend import Bend, bend_rows
from deltaconvert.backends.cpu.rows.curves import compiled_curve
from deltaconvert.backends.cpu.rows.narrow import MOST_ROWS, finish_narrow
from deltaconvert.backends.cpu.rows.row import add_row, compare_row, trailing_zeros, write_row
from deltaconvert.nodes import DeltaNode
from deltaconvert.operators import registry

# How far ahead rows are fetched: numbers whose comparison takes as long as memory does.
_FETCHED_NUMBERS = 512
# Rows that are compared before those that exceed are written, a bit each: whether one does is no
# guess of the processor's then, and one row need not wait for another. So few that they stay in
# the first cache.
_COMPARED_NUMBERS, _MOST_COMPARED = 2048, MOST_ROWS
_ONE = np.float32(1)


class Ending(NamedTuple):
    """What the loops need to finish rows.

    Args:
        bias, zeros: float32 ``[C]``, added first; and nothing to add.
        added, added_step: a residual of the same shape, added next; empty for none.
        code, settings: of the activation, see `activations.Activation`; float32 ``[2, C]``.
        call, told: address of a function that applies another activation, and what it is told
            beside the worker; 0 for none.
        rows: int64 ``[workers, 4]``, where that finds the rows: address of the first, how
            many, numbers from one to the next, channels.
        out, step, plane: the value that is written: flat, from a pixel to the next, and the
            pixels of a lane.
        channels: of a row.
        thresholds, fresh: one a lane.
        rms: which norm.
        mask: uint8, flat.
        counts: int64 ``[workers, lanes]``: the pixels that were written.
    """

    bias: Floats
    zeros: Floats
    added: Numbers
    added_step: int
    code: int
    settings: Floats2
    call: int
    told: int
    rows: Longs2
    out: Numbers
    step: int
    plane: int
    channels: int
    thresholds: Doubles
    fresh: Flags
    rms: bool
    mask: Bytes
    counts: Longs2


def ending_of(node: DeltaNode, buffers: Buffers, head: Head, engine: Engine, *,
              bias: Tensor | None = None, residual: Tensor | None = None,
              activation: tuple[object, ...] | None = None) -> Ending:
    """Return the end of a node's step.

    Args:
        node: whose norm applies.
        buffers: its edges.
        head: of its step.
        engine: of the stream.
        bias: float32 ``[C]``, added first.
        residual: an input edge's value of the same shape, added next.
        activation: applied last; ``(name, *numbers)``.
    """
    edge = buffers.output
    out = flat_map(edge.value)
    known = compiled_activation(activation)
    rows = np.zeros((engine.workers.threads, 4), np.int64)
    function, told = (0, 0) if known or not activation else _apart(activation, rows, engine)
    known = known or Activation()
    added = FlatMap(out.data[:0], 0, 0, 0, 0, 0) if residual is None else flat_map(residual)
    zeros, settings = np.zeros(out.channels, np.float32), np.zeros((2, out.channels), np.float32)
    settings[0] = known.first.float() if isinstance(known.first, Tensor) else known.first
    settings[1] = known.second
    return Ending(
        zeros if bias is None else flat(bias), zeros, added.data, added.step, known.code,
        settings, function, told, rows, out.data, out.step, out.pixels, out.channels,
        edge.threshold, buffers.state.fresh, node.about.norm == "rms", flat(edge.mask),
        head.counts)


def _apart(activation: tuple[object, ...], rows: np.ndarray, engine: Engine) -> tuple[int, int]:
    """Return the address of what applies a longer activation, and what it is told."""
    if curve := compiled_curve(activation):
        code, *settings = curve
        task = engine.keep(Bend(rows, code, *map(np.float32, settings)))
        return bend_rows.address, task.address
    return engine.callback(lambda worker: _activate_with_torch(activation, rows[worker])), 0


def _activate_with_torch(activation: tuple[object, ...], rows: np.ndarray) -> None:
    """Serve an activation that the loops do not have by its own function."""
    name, *numbers = activation
    found = registry.named(str(name))
    assert found is not None
    address, count, step, channels = rows.tolist()
    sums = floats_at(address, count, step)[:, :channels]
    sums[:] = found.function(torch.from_numpy(sums.copy()), *numbers).numpy()


@loop
def finish_rows(new, pixels, ending, worker):
    """Apply the rule to new rows.

    Args:
        new: float32 ``[M, C]`` or wider; overwritten.
        pixels: int32 ``[m]``, ascending: the candidates, one a row.
        ending: an `Ending`.
        worker: who calls.
    """
    finish_batch(new, pixels, 0, pixels.shape[0], ending, worker)


@loop
def finish_batch(new, pixels, first, last, ending, worker):
    """Do the same for some of the pixels; those behind them are fetched, as they come next."""
    channels, counts = ending.channels, ending.counts[worker]
    bias, adds = ending.bias.ctypes.data, ending.added.shape[0] != 0
    out, added = ending.out.ctypes.data, ending.added.ctypes.data
    if ending.call != 0:
        _activate_apart(new, pixels[first:last], ending, worker)
        bias, adds = ending.zeros.ctypes.data, False
    ahead, size, end = _FETCHED_NUMBERS // channels + 1, ending.out.itemsize, pixels.shape[0] - 1
    group = min(max(_COMPARED_NUMBERS // channels, 1), _MOST_COMPARED)
    narrow = channels <= WIDTH
    i = first
    while i < last:
        lane = np.int64(pixels[i]) // ending.plane
        stop = min(i + group, last)
        while pixels[stop - 1] >= (lane + 1) * ending.plane:
            stop -= 1
        threshold = np.float32(ending.thresholds[lane])
        row = new.ctypes.data + 4 * (i - first) * new.shape[1]
        if narrow:
            counts[lane] += finish_narrow(
                ending.out, row, 4 * new.shape[1], pixels.ctypes.data + 4 * i, stop - i,
                min(ahead, end + 1 - stop), out, size * ending.step, bias, added if adds else 0,
                size * ending.added_step, channels, ending.code, ending.settings.ctypes.data,
                threshold, ending.rms, ending.fresh[lane], ending.mask.ctypes.data)
            i = stop
            continue
        exceeding = np.uint64(0)
        for k in range(i, stop):
            pixel, later = np.int64(pixels[k]), np.int64(pixels[min(k + ahead, end)])
            exceeds = compare_row(
                ending.out, row + 4 * (k - i) * new.shape[1], out + size * pixel * ending.step,
                bias, added + size * pixel * ending.added_step if adds else 0, channels,
                ending.code, ending.settings.ctypes.data, threshold, ending.rms,
                out + size * later * ending.step, added + size * later * ending.added_step)
            exceeding |= np.uint64(exceeds) << np.uint64(k - i)
        if ending.fresh[lane]:
            exceeding = ~np.uint64(0) >> np.uint64(64 - (stop - i))
        while exceeding != 0:
            k = trailing_zeros(exceeding)
            exceeding &= exceeding - np.uint64(1)
            pixel = np.int64(pixels[i + k])
            write_row(ending.out, row + 4 * k * new.shape[1], out + size * pixel * ending.step,
                      channels)
            ending.mask[pixel] = 1
            counts[lane] += 1
        i = stop


@loop
def _activate_apart(new, pixels, ending, worker):
    """Add to the rows, and have them activated."""
    channels, size, bias = ending.channels, ending.added.itemsize, ending.bias.ctypes.data
    row, step, added = new.ctypes.data, 4 * new.shape[1], ending.added.ctypes.data
    for i in range(pixels.shape[0]):
        add_row(ending.bias, bias, _ONE, row + i * step, channels)
        if ending.added.shape[0] != 0:
            place = size * np.int64(pixels[i]) * ending.added_step
            add_row(ending.added, added + place, _ONE, row + i * step, channels)
    ending.rows[worker, 0] = new.ctypes.data
    ending.rows[worker, 1] = pixels.shape[0]
    ending.rows[worker, 2] = new.shape[1]
    ending.rows[worker, 3] = channels
    call(ending.call, ending.told, worker)
