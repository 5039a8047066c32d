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
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap, flat, flat_map
from deltaconvert.backends.cpu.storage import load, rounded, store
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
        out, step, plane: the value that is written: flat, from a pixel to the next, and the
            pixels of a lane.
        channels: of a row.
        thresholds, fresh: one a lane, float32 and uint8.
        rms: which norm.
        mask: uint8, flat.
    """

    bias: np.ndarray
    added: np.ndarray
    added_step: int
    code: int
    slope: np.float32
    out: np.ndarray
    step: int
    plane: int
    channels: int
    thresholds: np.ndarray
    fresh: np.ndarray
    rms: bool
    mask: np.ndarray


class Finish:
    """The end of a node's step: compares rows, writes value, mask and counts.

    Args:
        node: whose threshold's norm and activation apply.
        buffers: its edges.
        workers: how many may call `rows` at once.
        bias: float32 ``[C]``, added first.
        residual: an input edge's value of the same shape, added next.
        activation: applied last; ``(name, *numbers)``.

    Attributes:
        ending: for loops that finish their rows themselves.
        counts: int64 ``[workers, lanes]``: the pixels that were written.
        compiled: whether the loops know the activation; else only `rows` applies it.
    """

    def __init__(self, node: DeltaNode, buffers: Buffers, workers: int, *,
                 bias: Tensor | None = None, residual: Tensor | None = None,
                 activation: tuple[object, ...] | None = None) -> None:
        """Resolve buffers to flat arrays."""
        self.edge, self.state = buffers.output, buffers.state
        self.out = flat_map(self.edge.value)
        known = compiled_activation(activation)
        self.compiled, self.activation = known is not None, activation
        known = known or Activation()
        nothing = FlatMap(self.out.data[:0], 0, 0, 0, 0, 0)
        added = nothing if residual is None else flat_map(residual)
        self.counts = np.zeros((workers, self.out.lanes), np.int64)
        self.ending = Ending(
            _NONE if bias is None else flat(bias), added.data, added.step, known.code,
            np.float32(known.slope), self.out.data, self.out.step, self.out.pixels,
            self.out.channels, np.zeros(self.out.lanes, np.float32),
            np.zeros(self.out.lanes, np.uint8), node.about.norm == "rms", flat(self.edge.mask))

    def begin(self) -> None:
        """Clear the last frame's mask; read the thresholds and which lanes are fresh."""
        ending = self.ending
        if self.edge.changed:
            ending.mask.fill(0)
        self.counts.fill(0)
        ending.thresholds[:] = self.edge.threshold
        ending.fresh[:] = self.state.fresh

    def rows(self, worker: int, new: np.ndarray, pixels: np.ndarray) -> None:
        """Apply the rule to new rows.

        Args:
            worker: who calls.
            new: float32 ``[M, C]`` or wider; overwritten.
            pixels: int32 ``[m]``: the candidates, one a row.
        """
        ending = self.ending
        if not self.compiled:
            new = self._activate_with_torch(new, pixels)
            ending = ending._replace(bias=_NONE, added=ending.added[:0])
        finish_rows(new, pixels, ending, self.counts[worker])

    def _activate_with_torch(self, new: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Serve an activation that the loops do not have by its own function."""
        assert self.activation is not None
        name, *numbers = self.activation
        found = registry.named(str(name))
        assert found is not None
        sums = np.empty((len(pixels), self.out.channels), np.float32)
        add_rows(new, pixels, self.ending, sums)
        result: np.ndarray = found.function(torch.from_numpy(sums), *numbers).contiguous().numpy()
        return result

    def end(self) -> None:
        """Publish the mask's counts."""
        self.edge.publish(self.counts.sum(0).tolist())


def nothing(finish: Finish) -> None:
    """Publish an empty mask."""
    if finish.edge.changed:
        finish.ending.mask.fill(0)
    finish.edge.publish([0] * finish.out.lanes)


@loop
def finish_rows(new, pixels, ending, counts):
    """See `Finish.rows`."""
    channels = ending.channels
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = new[i][:channels]
        add_row(row, ending.bias, ending.added, pixel * ending.added_step)
        if ending.code != 0:
            activate(row, ending.code, ending.slope)
        lane = pixel // ending.plane
        old = ending.out[pixel * ending.step:pixel * ending.step + channels]
        if ending.fresh[lane] != 0 or exceeds(row, old, ending.thresholds[lane], ending.rms):
            for c in range(channels):
                store(old, c, row[c])
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
            row[c] += load(other, c)


@loop
def exceeds(row, old, threshold, rms):
    """Return whether the norm of the difference is not within the threshold.

    Compared is the row as it would be stored.
    Equal numbers differ by 0 (so do two equal infinities); NaN is never within.
    """
    size = row.shape[0]
    if rms:
        total = _ZERO
        for c in range(size):
            new, was = rounded(old, row[c]), load(old, c)
            d = _ZERO if new == was else new - was
            total += d * d
        return not (np.sqrt(total / np.float32(size)) <= threshold)
    outside = np.int32(0)
    for c in range(size):
        new, was = rounded(old, row[c]), load(old, c)
        d = _ZERO if new == was else new - was
        outside |= np.int32(not (abs(d) <= threshold))
    return outside != 0


@loop
def add_rows(new, pixels, ending, out):
    """Write rows plus bias and residual to ``out``, packed."""
    channels = out.shape[1]
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = new[i]
        for c in range(channels):
            out[i, c] = row[c]
        add_row(out[i], ending.bias, ending.added, pixel * ending.added_step)
