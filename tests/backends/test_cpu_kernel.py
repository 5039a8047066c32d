"""The product of rows, wherever they lie, with packed filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaconvert.backends.cpu import filters, kernel


def small_integers(*shape: int) -> torch.Tensor:
    """Products of these are exact in any order, so results can be compared with ``==``."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def multiply(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply ``[M, segments, groups * numbers]`` rows with ``[groups, segments, numbers, N]``."""
    count, segments, _ = rows.shape
    groups, _, numbers, columns = matrices.shape
    packed, panels = filters._panels(matrices.flatten(1, 2), numbers)
    blocks = -(-count // kernel.BLOCK)
    nothing = np.zeros(rows.shape[2], np.float32)
    addresses = np.full((blocks, segments, kernel.BLOCK), nothing.ctypes.data, np.int64)
    for row in range(count):
        for segment in range(segments):
            addresses[row // kernel.BLOCK, segment, row % kernel.BLOCK] = (
                rows[row, segment].data_ptr())
    new = np.full((blocks * kernel.BLOCK, groups * columns + kernel.PANEL), np.nan, np.float32)
    kernel.multiply_rows(addresses, count, filters._pieces(segments, numbers), packed, panels, 0,
                         panels.shape[1], new)
    return torch.from_numpy(new[:count, :groups * columns])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 12, 13, 25])
@pytest.mark.parametrize("columns", [1, 16, 17, 32, 33, 80])
def test_every_number_of_rows_and_columns(count: int, columns: int) -> None:
    rows, matrix = small_integers(count, 1, 7), small_integers(1, 1, 7, columns)
    assert torch.equal(multiply(rows, matrix), rows[:, 0] @ matrix[0, 0])


@pytest.mark.parametrize("segments, numbers", [(1, 1), (9, 64), (9, 200), (3, 513), (2, 1100)])
def test_long_rows_are_taken_in_pieces(segments: int, numbers: int) -> None:
    rows, matrix = small_integers(14, segments, numbers), small_integers(1, segments, numbers, 40)
    assert torch.equal(multiply(rows, matrix), rows.flatten(1) @ matrix[0].flatten(0, 1))


def test_a_group_does_not_reach_into_the_next() -> None:
    rows, matrices = small_integers(14, 2, 3 * 300), small_integers(3, 2, 300, 20)
    rows[:, :, :300] = torch.inf  # of the first group alone
    result = multiply(rows, matrices)
    expected = torch.cat([rows[:, :, 300 * g:300 * g + 300].flatten(1) @ matrices[g].flatten(0, 1)
                          for g in (1, 2)], 1)
    assert torch.equal(result[:, 20:], expected)
    assert not result[:, :20].isfinite().any()


def test_no_segments_give_zeros() -> None:
    new = np.full((kernel.BLOCK, kernel.PANEL + 8), np.nan, np.float32)
    packed, panels = filters._panels(torch.zeros(1, 0, 8), 3)
    kernel.multiply_rows(np.zeros((1, 0, kernel.BLOCK), np.int64), 5, filters._pieces(0, 3),
                         packed, panels, 0, 1, new)
    assert (new[:5, :8] == 0).all()
