"""The product of rows, wherever they lie, with packed filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaconvert.backends.cpu.convolutions import filters, kernel
from deltaconvert.backends.cpu.maps.storage import numbers_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def small_integers(*shape: int) -> torch.Tensor:
    """Products of these are exact in any order, so results can be compared with ``==``."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def multiply(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply ``[M, segments, groups * numbers]`` rows with ``[groups, segments, numbers, N]``."""
    count, segments, _ = rows.shape
    groups, _, numbers, columns = matrices.shape
    packed, panels = filters._panels(matrices)
    blocks = -(-count // kernel.BLOCK)
    nothing = numbers_of(torch.zeros(rows.shape[2], dtype=rows.dtype))
    addresses = np.full((blocks, segments, kernel.BLOCK), nothing.ctypes.data, np.int64)
    for row in range(count):
        for segment in range(segments):
            addresses[row // kernel.BLOCK, segment, row % kernel.BLOCK] = (
                rows[row, segment].data_ptr())
    new = np.full((blocks * kernel.BLOCK, groups * columns + kernel.PANEL), np.nan, np.float32)
    pieces = filters._pieces(segments, numbers, filters._step(matrices))
    kernel.multiply_rows(addresses, count, pieces, packed, panels, 0, panels.shape[1],
                         new)
    return torch.from_numpy(new[:count, :groups * columns])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 12, 13, 25])
@pytest.mark.parametrize("columns", [1, 16, 17, 32, 33, 80])
@DTYPES
def test_every_number_of_rows_and_columns(count: int, columns: int, dtype: torch.dtype) -> None:
    rows, matrix = small_integers(count, 1, 7), small_integers(1, 1, 7, columns)
    assert torch.equal(multiply(rows.to(dtype), matrix.to(dtype)), rows[:, 0] @ matrix[0, 0])


@pytest.mark.parametrize("segments, numbers", [
    (1, 1), (2, 1), (9, 3), (9, 7), (200, 7), (9, 64), (9, 200), (3, 513), (2, 1100), (2, 1801)])
@DTYPES
def test_long_rows_are_taken_in_pieces(segments: int, numbers: int, dtype: torch.dtype) -> None:
    rows, matrix = small_integers(14, segments, numbers), small_integers(1, segments, numbers, 40)
    expected = rows.flatten(1) @ matrix[0].flatten(0, 1)
    assert torch.equal(multiply(rows.to(dtype), matrix.to(dtype)), expected)


@pytest.mark.parametrize("count", [1, 14])
@pytest.mark.parametrize("numbers", [1, 3, 7, 513])
def test_what_lies_behind_an_odd_segment_is_not_its_own(count: int, numbers: int) -> None:
    """Its zeros in the filter would not help: infinity times zero is no number."""
    whole = torch.full((count, 2, numbers + 1), torch.inf, dtype=torch.bfloat16)
    rows, matrix = small_integers(count, 2, numbers), small_integers(1, 2, numbers, 20)
    whole[:, :, :numbers] = rows
    expected = rows.flatten(1) @ matrix[0].flatten(0, 1)
    assert torch.equal(multiply(whole[:, :, :numbers], matrix.bfloat16()), expected)


@pytest.mark.parametrize("numbers", [1, 15, 300])
@DTYPES
def test_a_group_does_not_reach_into_the_next(numbers: int, dtype: torch.dtype) -> None:
    rows, matrices = small_integers(14, 2, 3 * numbers), small_integers(3, 2, numbers, 20)
    rows[:, :, :numbers] = torch.inf  # of the first group alone
    result = multiply(rows.to(dtype), matrices.to(dtype))
    expected = torch.cat([rows[:, :, numbers * g:][:, :, :numbers].flatten(1)
                          @ matrices[g].flatten(0, 1) for g in (1, 2)], 1)
    assert torch.equal(result[:, 20:], expected)
    assert not result[:, :20].isfinite().any()


@DTYPES
def test_no_segments_give_zeros(dtype: torch.dtype) -> None:
    new = np.full((kernel.BLOCK, kernel.PANEL + 8), np.nan, np.float32)
    packed, panels = filters._panels(torch.zeros(1, 0, 3, 8, dtype=dtype))
    kernel.multiply_rows(np.zeros((1, 0, kernel.BLOCK), np.int64), 5, filters._pieces(0, 3),
                         packed, panels, 0, 1, new)
    assert (new[:5, :8] == 0).all()
