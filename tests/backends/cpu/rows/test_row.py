"""The end of a row: which differences exceed a threshold, at the edges of what floats are."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from deltaconvert.backends.cpu.rows.row import compare_row, load_other

LARGEST = float(np.finfo(np.float32).max)


@numba.njit
def exceeds(new: Any, old: Any, bias: Any, threshold: Any, rms: Any) -> Any:
    """Compare one row, of no activation, with the one that is there."""
    row, there = new.ctypes.data, old.ctypes.data
    return compare_row(old, row, there, bias.ctypes.data, 0, new.shape[0], 0, np.float32(0),
                       np.float32(threshold), rms, there, there)


@numba.njit
def other(source: Any, first: int, row: Any) -> None:
    """Take every other number."""
    load_other(source, source.ctypes.data + 4 * first, row.ctypes.data, row.shape[0])


def check(difference: float, threshold: float, rms: bool, channels: int = 16) -> bool:
    """Return whether numbers that all differ by so much exceed a threshold."""
    new, old = np.full(channels, difference, np.float32), np.zeros(channels, np.float32)
    return bool(exceeds(new, old, np.zeros(channels, np.float32), threshold, rms))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("channels", [1, 4, 16, 64])
@pytest.mark.parametrize("size", [2.0**-30, 0.5, 1.0, 2.0**40])
def test_the_threshold_itself_is_within(size: float, channels: int, rms: bool) -> None:
    next_to = [float(np.nextafter(np.float32(size), np.float32(to))) for to in (0, LARGEST)]
    assert not check(size, size, rms, channels)
    assert check(size, next_to[0], rms, channels)
    assert not check(size, next_to[1], rms, channels)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("difference, threshold, outside", [
    (0.0, 0.0, False), (1e-15, 0.0, True), (1e-15, 2e-15, False), (2e-15, 1e-15, True),
    (1e-18, 2e-18, False), (1e18, 2e18, False), (2e18, 1e18, True), (1e30, float("inf"), False),
    (float("inf"), LARGEST, True), (float("nan"), LARGEST, True), (float("nan"), 0.0, True),
    (0.0, float("nan"), True), (1.0, float("nan"), True)])
def test_small_and_large_numbers(difference: float, threshold: float, outside: bool,
                                 rms: bool) -> None:
    assert check(difference, threshold, rms) == outside


@pytest.mark.parametrize("channels", range(1, 50))
def test_every_other_number_and_none_behind_the_last(channels: int) -> None:
    source = np.arange(2 * channels, dtype=np.float32)
    for first in (0, 1):
        row = np.full(channels, -1, np.float32)
        other(source, first, row)
        np.testing.assert_array_equal(row, source[first::2])
