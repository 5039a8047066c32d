"""Taps as index tables, by hand. What dense functions really read is in ``tests/operators``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaconvert import footprint
from deltaconvert.footprint import Footprint


def candidates(taps: Footprint, *rows: list[int]) -> list[list[int]]:
    return taps.candidates(torch.tensor([rows], dtype=torch.uint8))[0].int().tolist()


def test_a_window_of_three_reaches_its_neighbours():
    taps = footprint.window((1, 5), (1, 5), (1, 3), (1, 1), (0, 1))
    assert taps.cols.tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, -1]]
    assert candidates(taps, [0, 0, 1, 0, 0]) == [[0, 1, 1, 1, 0]]
    assert candidates(taps, [1, 0, 0, 0, 0]) == [[1, 1, 0, 0, 0]]


def test_stride_and_dilation_skip():
    taps = footprint.window((1, 6), (1, 2), (1, 2), (1, 3), (0, 0), (1, 2))
    assert taps.cols.tolist() == [[0, 2], [3, 5]]
    assert candidates(taps, [0, 1, 0, 0, 1, 0]) == [[0, 0]]
    assert candidates(taps, [0, 0, 1, 0, 0, 1]) == [[1, 1]]


def test_a_transposed_window_spreads():
    taps = footprint.transposed_window((1, 2), (1, 5), (1, 3), (1, 2), (0, 0))
    assert candidates(taps, [1, 0]) == [[1, 1, 1, 0, 0]]
    assert candidates(taps, [0, 1]) == [[0, 0, 1, 1, 1]]


def test_output_padding_reads_nothing():
    taps = footprint.transposed_window((1, 1), (1, 3), (1, 1), (1, 2), (0, 0))
    assert candidates(taps, [1]) == [[1, 0, 0]]


def test_ranges_of_different_lengths():
    taps = footprint.ranges((1, 5), [np.array([0]), np.array([0, 1, 3])],
                            [np.array([1]), np.array([2, 4, 5])])
    assert candidates(taps, [0, 1, 0, 0, 0]) == [[1, 1, 0]]
    assert candidates(taps, [0, 0, 0, 1, 0]) == [[0, 1, 1]]


def test_broadcasting_reads_one_pixel_from_everywhere():
    assert candidates(footprint.broadcast((1, 1), (2, 3)), [1]) == [[1, 1, 1]] * 2
    assert candidates(footprint.broadcast((1, 3), (2, 3)), [0, 1, 0]) == [[0, 1, 0]] * 2
    with pytest.raises(ValueError, match="does not broadcast"):
        footprint.broadcast((2, 3), (3, 3))


def test_gather_and_identity():
    assert candidates(footprint.gather((1, 3), [0], [2, 2, 0]), [0, 0, 1]) == [[1, 1, 0]]
    assert candidates(footprint.identity((2, 2)), [0, 1], [1, 0]) == [[0, 1], [1, 0]]


def test_what_it_says_of_itself():
    plain = footprint.identity((3, 4))
    assert plain.is_identity
    assert (plain.size_in, plain.size_out, plain.taps) == ((3, 4), (3, 4), (1, 1))
    flipped = footprint.gather((3, 4), [0, 1, 2], [3, 2, 1, 0])
    assert not flipped.is_identity
    cut = footprint.gather((3, 4), [0, 1, 2], [0, 1, 2])
    assert not cut.is_identity
    window = footprint.window((3, 4), (3, 4), (3, 1), (1, 1), (1, 0))
    assert not window.is_identity
    assert window.taps == (3, 1)
    assert footprint.window((3, 4), (3, 4), (1, 1), (1, 1), (0, 0)).is_identity


def test_keys_are_equal_where_candidates_are():
    one = footprint.window((5, 5), (5, 5), (1, 1), (1, 1), (0, 0))
    assert one.key() == footprint.identity((5, 5)).key()
    assert one.key() != footprint.identity((5, 6)).key()
    assert one.key() != footprint.gather((5, 5), range(5), [0, 1, 2, 4, 3]).key()
    assert one.key() != footprint.gather((6, 5), range(5), range(5)).key()


def test_lanes_share_nothing():
    taps = footprint.window((3, 3), (3, 3), (3, 3), (1, 1), (1, 1))
    mask = torch.zeros(2, 3, 3, dtype=torch.uint8)
    mask[1, 1, 1] = 1
    assert taps.candidates(mask).flatten(1).sum(1).tolist() == [0, 9]
