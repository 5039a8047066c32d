"""What mean pooling divides by, for the backends with kernels of their own."""

from __future__ import annotations

import numpy as np

from deltaconvert.footprint import Footprint
from deltaconvert.nodes import Description
from deltaconvert.operators.conv2d import pair


def divisors_of(about: Description, footprint: Footprint) -> tuple[np.ndarray, np.ndarray]:
    """Return what the sum at ``(y, x)`` is divided by, as a factor a row and a factor a column.

    PyTorch counts the taps inside the map; with ``count_include_pad`` those inside the
    padded map, beyond which a window of ``ceil_mode`` may still reach.
    """
    params = about.params
    if params.get("divisor_override"):
        ones = (np.ones(size, np.float32) for size in footprint.size_out)
        rows, cols = ones
        return rows * np.float32(params["divisor_override"]), cols
    if params.get("count_include_pad"):
        return tuple(  # type: ignore[return-value]
            _padded_taps(*of_side) for of_side in zip(
                footprint.size_out, footprint.size_in, pair(params["kernel_size"]),
                pair(params["stride"]), params["padding"], strict=True))
    return tuple((table >= 0).sum(1).astype(np.float32)
                 for table in (footprint.rows, footprint.cols))


def _padded_taps(out: int, size: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    start = np.arange(out) * stride - padding
    return (np.minimum(start + kernel, size + padding) - start).astype(np.float32)
