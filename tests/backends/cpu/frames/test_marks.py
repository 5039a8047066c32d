"""Rows of marks against NumPy, at all lengths and from any address."""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import numpy as np
import pytest

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.frames import marks

LENGTHS = (0, 1, 7, 8, 9, 20, 40, 63, 64, 65, 80, 127, 128, 201)


@loop
def unite(out, others, step, count):
    if step == 1:
        marks.unite_marks(out, others, count)
    else:
        marks.unite_every_other(out, others, count)


@loop
def any_of(row, count):
    return marks.any_mark(row, count)


@pytest.mark.parametrize("step", [1, 2])
def test_unite(step: int) -> None:
    random = np.random.default_rng(0)
    for count in LENGTHS:
        out = (random.random(count + 8) < 0.3).astype(np.uint8)
        others = (random.random(step * count + 4) < 0.3).astype(np.uint8)
        expected = out.copy()
        expected[5:5 + count] |= others[3:3 + step * count:step][:count]
        unite(out.ctypes.data + 5, others.ctypes.data + 3, step, count)
        np.testing.assert_array_equal(out, expected)


def test_any() -> None:
    for count in LENGTHS:
        row = np.zeros(count + 2, np.uint8)
        row[0] = row[-1] = 1  # beside those that are asked for
        assert not any_of(row.ctypes.data + 1, count)
        for at in range(count):
            row[1:-1] = np.arange(count) == at
            assert any_of(row.ctypes.data + 1, count)
