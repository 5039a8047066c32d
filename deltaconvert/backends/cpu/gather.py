"""Single pixels of a map, copied into rows."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import FlatMap
from deltaconvert.footprint import Footprint

_ZERO = np.float32(0)


class Gather:
    """Copies the one pixel that each pixel of a footprint reads, or zeros.

    Args:
        source: the map that is read.
        footprint: of one tap.
    """

    def __init__(self, source: FlatMap, footprint: Footprint) -> None:
        """Keep the tables."""
        self.source = source
        self.rows, self.cols = (
            np.array(t, np.int32, order="C") for t in (footprint.rows, footprint.cols))
        self.same = footprint.is_identity

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.source.channels

    def __call__(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Write row ``i`` for ``pixels[i]``.

        Args:
            pixels: int32 ``[M]``.
            out: float32 ``[M, C]``.
        """
        source = self.source
        if self.same:
            gather_same(source.data, source.step, pixels, out)
        else:
            gather_tap(source.data, source.step, source.height, source.width, self.rows,
                       self.cols, pixels, out)


@loop
def gather_same(data, step, pixels, out):
    """Copy each pixel itself."""
    channels = out.shape[1]
    for i in range(pixels.shape[0]):
        start = np.int64(pixels[i]) * step
        source = data[start:start + channels]
        row = out[i]
        for c in range(channels):
            row[c] = source[c]


@loop
def gather_tap(data, step, height, width, rows, cols, pixels, out):
    """Copy each pixel's tap."""
    channels = out.shape[1]
    height_out, width_out = rows.shape[0], cols.shape[0]
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        x = cols[pixel % width_out, 0]
        y = rows[pixel // width_out % height_out, 0]
        if x < 0 or y < 0:
            clear(out[i])
        else:
            lane = pixel // (width_out * height_out)
            start = ((lane * height + y) * width + x) * step
            copy(out[i], data[start:start + channels])


@loop
def copy(target, source):
    """Copy a run of numbers."""
    for c in range(target.shape[0]):
        target[c] = source[c]


@loop
def clear(target):
    """Zero a run of numbers."""
    for c in range(target.shape[0]):
        target[c] = _ZERO
