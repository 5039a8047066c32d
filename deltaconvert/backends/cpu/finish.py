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
from deltaconvert.backends.cpu.activations import Activation, activate, compiled_activation
from deltaconvert.backends.cpu.engine import Engine
from deltaconvert.backends.cpu.frame import Head
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat, flat_map, floats_at
from deltaconvert.backends.cpu.native import (
    Bytes,
    Doubles,
    Flags,
    Floats,
    Longs2,
    call,
)
from deltaconvert.nodes import DeltaNode
from deltaconvert.operators import registry

_NONE = np.zeros(0, np.float32)
_ZERO = np.float32(0)


class Ending(NamedTuple):
    """What the loops need to finish rows.

    Args:
        bias: float32 ``[C]``, added first; empty for none.
        added, added_step: a residual of the same shape, added next; empty for none.
        code, slope: of the activation, see `activations.Activation`.
        call: address of a function that applies another activation; 0 for none.
        rows: int64 ``[workers, 4]``, where that is told the rows: address of the first, how
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
    added: Floats
    added_step: int
    code: int
    slope: np.float32
    call: int
    rows: Longs2
    out: Floats
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
    function = 0 if known or not activation else engine.callback(
        lambda worker: _activate_with_torch(activation, rows[worker]))
    known = known or Activation()
    added = FlatMap(_NONE, 0, 0, 0, 0, 0) if residual is None else flat_map(residual)
    return Ending(
        _NONE if bias is None else flat(bias), added.data, added.step, known.code,
        np.float32(known.slope), function, rows, out.data, out.step, out.pixels, out.channels,
        edge.threshold, buffers.state.fresh, node.about.norm == "rms", flat(edge.mask),
        head.counts)


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
        pixels: int32 ``[m]``: the candidates, one a row.
        ending: an `Ending`.
        worker: who calls.
    """
    channels = ending.channels
    counts = ending.counts[worker]
    if ending.call != 0:
        for i in range(pixels.shape[0]):
            add_row(new[i][:channels], ending.bias, ending.added,
                    np.int64(pixels[i]) * ending.added_step)
        ending.rows[worker, 0] = new.ctypes.data
        ending.rows[worker, 1] = pixels.shape[0]
        ending.rows[worker, 2] = new.shape[1]
        ending.rows[worker, 3] = channels
        call(ending.call, worker, 0)
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = new[i][:channels]
        if ending.call == 0:
            add_row(row, ending.bias, ending.added, pixel * ending.added_step)
            if ending.code != 0:
                activate(row, ending.code, ending.slope)
        lane = pixel // ending.plane
        old = ending.out[pixel * ending.step:pixel * ending.step + channels]
        threshold = np.float32(ending.thresholds[lane])
        if ending.fresh[lane] or exceeds(row, old, threshold, ending.rms):
            for c in range(channels):
                old[c] = row[c]
            ending.mask[pixel] = 1
            counts[lane] += 1


@loop
def add_row(row, bias, added, start):
    """Add bias and residual to a row, where there are any."""
    size = row.shape[0]
    if bias.shape[0] != 0:
        for c in range(size):
            row[c] += bias[c]
    if added.shape[0] != 0:
        other = added[start:start + size]
        for c in range(size):
            row[c] += other[c]


@loop
def exceeds(row, old, threshold, rms):
    """Return whether the norm of the difference is not within the threshold.

    Equal numbers differ by 0 (so do two equal infinities); NaN is never within.
    """
    size = row.shape[0]
    if rms:
        total = _ZERO
        for c in range(size):
            d = _ZERO if row[c] == old[c] else row[c] - old[c]
            total += d * d
        return not (np.sqrt(total / np.float32(size)) <= threshold)
    outside = np.int32(0)
    for c in range(size):
        d = _ZERO if row[c] == old[c] else row[c] - old[c]
        outside |= np.int32(not (abs(d) <= threshold))
    return outside != 0
