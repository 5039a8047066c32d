"""The rule at a chunk of candidates, in one pass while the new rows are in the cache.

Bias, residual and activation are added to what the GEMM (or another loop) left, each row
is compared with the stored one, and replaces it where the norm of the difference exceeds
the lane's threshold.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu.activations import Activation, activate, compiled_activation
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import flat, flat_map
from deltaconvert.nodes import DeltaNode
from deltaconvert.operators import registry

_NONE = np.zeros(0, np.float32)
_ZERO = np.float32(0)


class Finish:
    """The end of a node's step: compares rows, writes value, mask and counts.

    Args:
        node: whose threshold's norm and activation apply.
        buffers: its edges.
        workers: how many may call `rows` at once.
        bias: float32 ``[C]``, added first.
        residual: an input edge's value of the same shape, added next.
        activation: applied last; ``(name, *numbers)``.
    """

    def __init__(self, node: DeltaNode, buffers: Buffers, workers: int, *,
                 bias: Tensor | None = None, residual: Tensor | None = None,
                 activation: tuple[object, ...] | None = None) -> None:
        """Resolve buffers to flat arrays."""
        self.edge, self.state = buffers.output, buffers.state
        self.out = flat_map(self.edge.value)
        self.mask = flat(self.edge.mask)
        self.rms = node.about.norm == "rms"
        self.bias = _NONE if bias is None else flat(bias)
        self.residual = None if residual is None else flat_map(residual)
        self.torch_activation = None
        compiled = compiled_activation(activation)
        if compiled is None:
            self.torch_activation, compiled = activation, Activation()
        self.activation = (compiled.code, np.float32(compiled.slope))
        self.counts = np.zeros((workers, self.out.lanes), np.int64)
        self.thresholds = np.zeros(self.out.lanes, np.float32)
        self.fresh = np.zeros(self.out.lanes, np.uint8)
        # What the loop takes for "no residual": never read, but of the same type.
        self._added = (self.residual.data, self.residual.step) if self.residual else (_NONE, 0)

    def begin(self) -> None:
        """Clear the last frame's mask; read the thresholds and which lanes are fresh."""
        if self.edge.changed:
            self.mask.fill(0)
        self.counts.fill(0)
        self.thresholds[:] = self.edge.threshold
        self.fresh[:] = self.state.fresh

    def rows(self, worker: int, new: np.ndarray, pixels: np.ndarray, first: int = -1) -> None:
        """Apply the rule to new rows.

        Args:
            worker: who calls.
            new: float32 ``[M, C]``; overwritten.
            pixels: int32 ``[m]``: the candidates.
            first: pixel of row 0 of ``new`` where its rows are consecutive pixels (a lane
                computed whole); -1 where row ``i`` belongs to ``pixels[i]``.
        """
        if self.torch_activation is not None:
            new = self._activate_with_torch(new, pixels, first)
            epilogue = (_NONE, _NONE, 0, 0, _ZERO)
        else:
            epilogue = (self.bias, *self._added, *self.activation)
        finish_rows(new, pixels, first, *epilogue, self.out.data, self.out.step,
                    self.out.pixels, self.thresholds, self.fresh, self.rms, self.mask,
                    self.counts[worker])

    def _activate_with_torch(self, new: np.ndarray, pixels: np.ndarray, first: int) -> np.ndarray:
        """Serve an activation that the loops do not have by its own function."""
        assert self.torch_activation is not None
        name, *numbers = self.torch_activation
        found = registry.named(str(name))
        assert found is not None
        sums = np.empty((len(pixels), new.shape[1]), np.float32)
        add_rows(new, pixels, first, self.bias, self._added[0], self._added[1], sums)
        result: np.ndarray = found.function(torch.from_numpy(sums), *numbers).contiguous().numpy()
        return result if first < 0 else _spread(result, new, pixels - first)

    def end(self) -> None:
        """Publish the mask's counts."""
        self.edge.publish(self.counts.sum(0).tolist())


def nothing(finish: Finish) -> None:
    """Publish an empty mask."""
    if finish.edge.changed:
        finish.mask.fill(0)
    finish.edge.publish([0] * finish.out.lanes)


def _spread(rows: np.ndarray, new: np.ndarray, at: np.ndarray) -> np.ndarray:
    new[at] = rows
    return new


@loop
def finish_rows(new, pixels, first, bias, added, added_step, code, slope, out, step, plane,
                thresholds, fresh, rms, mask, counts):
    """See `Finish.rows`."""
    channels = new.shape[1]
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = new[i if first < 0 else pixel - first]
        add_row(row, bias, added, pixel * added_step)
        if code != 0:
            activate(row, code, slope)
        lane = pixel // plane
        old = out[pixel * step:pixel * step + channels]
        if fresh[lane] != 0 or exceeds(row, old, thresholds[lane], rms):
            for c in range(channels):
                old[c] = row[c]
            mask[pixel] = 1
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


@loop
def add_rows(new, pixels, first, bias, added, added_step, out):
    """Write rows plus bias and residual to ``out``, packed."""
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        row = new[i if first < 0 else pixel - first]
        for c in range(row.shape[0]):
            out[i, c] = row[c]
        add_row(out[i], bias, added, pixel * added_step)

