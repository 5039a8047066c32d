"""Taps as kinds of rows and columns, and the runs of candidates of one kind."""

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.frames.lists import _windows
from deltaconvert.backends.cpu.maps.flat import FlatMap
from deltaconvert.backends.cpu.rows.reduction import PIXELS
from deltaconvert.backends.cpu.rows.stencil import (
    COLUMN,
    COUNT,
    FOUND,
    ROW,
    find_runs,
    stencil_of,
)
from deltaconvert.footprint import transposed_window, window

HEIGHT, WIDTH, CHANNELS = 6, 9, 2


def a_map(lanes: int = 2) -> FlatMap:
    data = np.arange(lanes * HEIGHT * WIDTH * CHANNELS, dtype=np.float32)
    return FlatMap(data, CHANNELS, CHANNELS, HEIGHT, WIDTH, lanes)


def three_by_three():
    return window((HEIGHT, WIDTH), (HEIGHT, WIDTH), (3, 3), (1, 1), (1, 1))


def test_a_window_has_a_kind_for_each_border_and_one_inside():
    stencil = stencil_of(a_map(), three_by_three(), 100, 10)
    assert stencil.rows.shape == (HEIGHT, 2)
    assert sorted(stencil.row_counts.tolist()) == [2, 2, 3]
    inside = stencil.cols[4, 1]
    pixel = 4 * CHANNELS
    assert stencil.col_taps[inside, 0].tolist() == [0, pixel, 2 * pixel]
    assert stencil.col_taps[inside, 1].tolist() == [0, 10, 20]
    left = stencil.cols[0, 1]
    assert stencil.col_counts[left] == 2
    assert stencil.col_taps[left, 1, :2].tolist() == [10, 20]  # the first tap falls outside
    assert stencil.cols[:, 0].tolist() == [max(x - 1, 0) * pixel for x in range(WIDTH)]


def test_a_transposed_window_has_a_kind_for_each_phase():
    footprint = transposed_window((3, 4), (6, 8), (4, 4), (2, 2), (1, 1))
    stencil = stencil_of(FlatMap(np.zeros(24, np.float32), 2, 2, 3, 4, 1), footprint)
    for y in range(6):
        kind = stencil.rows[y, 1]
        count = stencil.row_counts[kind]
        assert count == (footprint.rows[y] >= 0).sum()
        places = stencil.row_taps[kind, 1, :count] // 4
        assert footprint.rows[y][places].min() * 4 * 2 * 4 == stencil.rows[y, 0]


def test_runs_are_neighbours_of_one_kind_in_a_line():
    source = a_map()
    stencil = stencil_of(source, three_by_three())
    line = HEIGHT * WIDTH + 2 * WIDTH  # the third of the second lane
    pixels = np.array([*range(line, line + WIDTH), line + WIDTH + 3], np.int32)
    runs = np.zeros((len(pixels), FOUND), np.int64)
    found = runs[:find_runs(stencil, pixels, runs)]
    assert found[:, COUNT].tolist() == [1, PIXELS, WIDTH - 2 - PIXELS, 1, 1]
    read = (found[:, :PIXELS] - source.data.ctypes.data) // (4 * CHANNELS)  # a window's first
    above = line - WIDTH
    assert read[:, 0].tolist() == [above, above, above + PIXELS, above + WIDTH - 2, line + 2]
    assert found[1, ROW] == found[4, ROW]
    assert found[1, COLUMN] == found[2, COLUMN] != found[0, COLUMN]
    assert read[1].tolist() == [above + x for x in range(PIXELS)]
    assert (found[3, :PIXELS] == found[3, 0]).all()


def test_columns_of_windows_are_told_from_others():
    footprint = window((HEIGHT, WIDTH), (3, 5), (3, 3), (2, 2), (1, 1))
    windows, stride = _windows(footprint.cols)
    assert stride == 2
    assert windows.tolist() == [[1, 5, 1], [0, 5, 0], [0, 4, 1]]
    flipped = np.arange(WIDTH, dtype=np.int32)[::-1, None]
    assert _windows(flipped)[1] == 0
