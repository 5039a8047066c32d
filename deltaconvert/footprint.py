"""Which input pixels an output pixel reads, as two small index tables.

Every local operator is separable in space: the rows an output row reads do not
depend on the column, nor the columns on the row. So a footprint is two tables,
``rows[y]`` and ``cols[x]``, of input indices, with -1 for a tap that falls into
the padding or does not exist. Windows, transposed windows, resizing, crops, flips
and broadcasting are all this one thing, and so are the masks that follow them:
a candidate is an output pixel one of whose taps is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Footprint:
    """Taps of every output row and column.

    Args:
        rows: int32 ``[H_out, taps]``, input rows or -1.
        cols: int32 ``[W_out, taps]``, input columns or -1.
        size_in: ``(H_in, W_in)``.
    """

    rows: np.ndarray
    cols: np.ndarray
    size_in: Pair

    @property
    def size_out(self) -> Pair:
        """``(H_out, W_out)``."""
        return self.rows.shape[0], self.cols.shape[0]

    @property
    def taps(self) -> Pair:
        """Taps in height and width."""
        return self.rows.shape[1], self.cols.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether each output pixel reads just the input pixel at its own place."""
        return self.size_in == self.size_out and all(
            t.shape[1] == 1 and np.array_equal(t[:, 0], np.arange(len(t)))
            for t in (self.rows, self.cols)
        )

    @property
    def is_single(self) -> bool:
        """Whether each output pixel reads exactly one input pixel."""
        return self.taps == (1, 1) and bool((self.rows >= 0).all() and (self.cols >= 0).all())

    def key(self) -> tuple[object, ...]:
        """Return what is equal for footprints that derive the same candidates."""
        return self.size_in, self.taps, self.rows.tobytes(), self.cols.tobytes()

    def candidates(self, mask: Tensor) -> Tensor:
        """Derive the output pixels with a set pixel among their taps.

        Args:
            mask: bool or uint8 ``[N, H_in, W_in]``.

        Returns:
            bool ``[N, H_out, W_out]``.
        """
        if self.is_identity:
            return mask.bool()
        by_row = _any_tap(mask.bool(), self.rows, dim=1)
        return _any_tap(by_row, self.cols, dim=2)


def _any_tap(mask: Tensor, table: np.ndarray, dim: int) -> Tensor:
    index = torch.from_numpy(table.astype(np.int64)).to(mask.device)
    picked = mask.index_select(dim, index.clamp(min=0).flatten())
    picked = picked.unflatten(dim, index.shape)
    exists = (index >= 0).reshape(*index.shape, *[1] * (mask.dim() - dim - 1))
    return (picked & exists).any(dim + 1)


def window(size_in: Pair, size_out: Pair, kernel: Pair, stride: Pair, padding: Pair,
           dilation: Pair = (1, 1)) -> Footprint:
    """Taps of a convolution or a pooling: ``y * stride - padding + k * dilation``."""
    return Footprint(*(
        _inside(np.arange(out)[:, None] * s - p + np.arange(k)[None, :] * d, size)
        for size, out, k, s, p, d in zip(
            size_in, size_out, kernel, stride, padding, dilation, strict=True)
    ), size_in)


def transposed_window(size_in: Pair, size_out: Pair, kernel: Pair, stride: Pair, padding: Pair,
                      dilation: Pair = (1, 1)) -> Footprint:
    """Taps of a transposed convolution: input ``i`` reaches ``i * stride - padding + k * dilation``."""
    tables = []
    for size, out, k, s, p, d in zip(
            size_in, size_out, kernel, stride, padding, dilation, strict=True):
        reach = np.arange(out)[:, None] + p - np.arange(k)[None, :] * d
        tables.append(_inside(np.where(reach % s == 0, reach // s, -1), size))
    return Footprint(*tables, size_in)


def ranges(size_in: Pair, starts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> Footprint:
    """Taps that run from ``starts[y]`` to ``ends[y]`` (exclusive), as in adaptive pooling."""
    tables = []
    for start, end in zip(starts, ends, strict=True):
        taps = start[:, None] + np.arange((end - start).max())[None, :]
        tables.append(np.where(taps < end[:, None], taps, -1).astype(np.int32))
    return Footprint(*tables, size_in)


def gather(size_in: Pair, rows: Sequence[int] | np.ndarray,
           cols: Sequence[int] | np.ndarray) -> Footprint:
    """One tap: output ``(y, x)`` reads input ``(rows[y], cols[x])``."""
    tables = (np.asarray(t, dtype=np.int32)[:, None] for t in (rows, cols))
    return Footprint(*tables, size_in)


def identity(size: Pair) -> Footprint:
    """Each output pixel reads its own place."""
    return gather(size, np.arange(size[0]), np.arange(size[1]))


def broadcast(size_in: Pair, size_out: Pair) -> Footprint:
    """PyTorch's broadcasting over space: a side of 1 is read from everywhere.

    Raises:
        ValueError: where a side is neither 1 nor equal.
    """
    tables = []
    for size, out in zip(size_in, size_out, strict=True):
        if size not in (1, out):
            raise ValueError(f"a map of {size_in} does not broadcast to {size_out}")
        tables.append(np.arange(out) if size == out else np.zeros(out, dtype=np.int32))
    return gather(size_in, *tables)


def _inside(index: np.ndarray, size: int) -> np.ndarray:
    return np.where((index >= 0) & (index < size), index, -1).astype(np.int32)
