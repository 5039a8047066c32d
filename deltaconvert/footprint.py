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
    def table(side: int) -> np.ndarray:
        first = np.arange(size_out[side]) * stride[side] - padding[side]
        return _inside(first[:, None] + np.arange(kernel[side]) * dilation[side], size_in[side])
    return Footprint(table(0), table(1), size_in)


def transposed_window(size_in: Pair, size_out: Pair, kernel: Pair, stride: Pair, padding: Pair,
                      dilation: Pair = (1, 1)) -> Footprint:
    """Taps of a transposed convolution: input i reaches ``i * stride - padding + k * dilation``."""
    def table(side: int) -> np.ndarray:
        reached = np.arange(size_out[side]) + padding[side]
        source = reached[:, None] - np.arange(kernel[side]) * dilation[side]
        exact = np.where(source % stride[side] == 0, source // stride[side], -1)
        return _inside(exact, size_in[side])
    return Footprint(table(0), table(1), size_in)


def ranges(size_in: Pair, starts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> Footprint:
    """Taps that run from ``starts[y]`` to ``ends[y]`` (exclusive), as in adaptive pooling."""
    def table(side: int) -> np.ndarray:
        start, end = starts[side], ends[side]
        taps = start[:, None] + np.arange((end - start).max())
        return np.where(taps < end[:, None], taps, -1).astype(np.int32)
    return Footprint(table(0), table(1), size_in)


def gather(size_in: Pair, rows: Sequence[int] | np.ndarray,
           cols: Sequence[int] | np.ndarray) -> Footprint:
    """One tap: output ``(y, x)`` reads input ``(rows[y], cols[x])``."""
    return Footprint(np.asarray(rows, dtype=np.int32)[:, None],
                     np.asarray(cols, dtype=np.int32)[:, None], size_in)


def identity(size: Pair) -> Footprint:
    """Each output pixel reads its own place."""
    return gather(size, np.arange(size[0]), np.arange(size[1]))


def broadcast(size_in: Pair, size_out: Pair) -> Footprint:
    """PyTorch's broadcasting over space: a side of 1 is read from everywhere.

    Raises:
        ValueError: where a side is neither 1 nor equal.
    """
    def table(side: int) -> np.ndarray:
        if size_in[side] not in (1, size_out[side]):
            raise ValueError(f"a map of {size_in} does not broadcast to {size_out}")
        return np.arange(size_out[side]) * (size_in[side] != 1)
    return gather(size_in, table(0), table(1))


def _inside(index: np.ndarray, size: int) -> np.ndarray:
    return np.where((index >= 0) & (index < size), index, -1).astype(np.int32)
