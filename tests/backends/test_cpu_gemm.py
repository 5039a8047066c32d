"""The matrix product behind the convolutions."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.backends.cpu.gemm import Matrix, packed_product, padded, plain_product


@pytest.mark.parametrize("rows, expected", [
    (1, 16), (16, 16), (17, 32), (127, 128), (129, 144), (255, 256), (257, 288), (1025, 1152)])
def test_there_are_eight_sizes_from_one_power_of_two_to_the_next(rows, expected):
    assert padded(rows) == expected


@pytest.mark.parametrize("shape", [(1, 1), (27, 16), (64, 3), (577, 65)])
def test_a_packed_filter_gives_the_product(shape):
    values = torch.randint(-4, 5, shape).float()
    rows = torch.randint(-4, 5, (37, shape[0])).float()
    product = packed_product(values)
    if product is None:
        pytest.skip("this build of PyTorch has no packed product")
    assert torch.equal(product(rows), rows @ values)  # small integers: exact in any order


def test_rows_may_lie_apart():
    """The pixels of a map that is a part of a concatenation."""
    values = torch.randint(-4, 5, (24, 8)).float()
    rows = torch.randint(-4, 5, (16, 40)).float()[:, 8:32]
    assert torch.equal(Matrix(values)(rows), rows @ values)


def test_without_the_librarys_operator_pytorchs_own_product_serves(monkeypatch):
    monkeypatch.setattr("deltaconvert.backends.cpu.gemm.packed_product", lambda values: None)
    values, rows = torch.randn(24, 8), torch.randn(16, 24)
    assert torch.equal(Matrix(values)(rows), plain_product(values)(rows))
