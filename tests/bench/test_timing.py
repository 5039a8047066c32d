"""Blocks, turns and percentiles."""

import pytest

from deltaconvert.bench import timing
from deltaconvert.bench.timing import Spread, Turn, ratios, take_turns


def test_percentiles_are_interpolated():
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.samples, spread.mean, spread.least, spread.most) == (5, 3.0, 1.0, 5.0)
    assert (spread.p25, spread.median, spread.p75) == (2.0, 3.0, 4.0)
    assert spread.p95 == pytest.approx(4.8)
    assert Spread.of([2.0]).p99 == 2.0


def test_blocks_alternate_and_only_timed_steps_count(monkeypatch):
    happened = []
    monkeypatch.setattr(timing, "settle", lambda: happened.append("settle"))
    turns = [Turn(name, lambda name=name: happened.append(name), untimed, timed,
                  lambda name=name: happened.append(f"after {name}"))
             for name, untimed, timed in (("a", 1, 2), ("b", 0, 1))]
    times = take_turns(turns, 2)
    one = ["settle", "a", "a", "after a", "a", "after a", "settle", "b", "after b"]
    assert happened == one * 2
    assert [len(block) for block in times["a"]] == [2, 2]
    assert [len(block) for block in times["b"]] == [1, 1]
    assert all(ms >= 0 for block in times["a"] for ms in block)


def test_a_ratio_is_of_one_round():
    """The machine became twice as slow in the second round: no ratio notices."""
    spread = ratios([[10.0, 10.0], [20.0, 20.0]], [[5.0], [10.0]])
    assert (spread.least, spread.median, spread.most) == (2.0, 2.0, 2.0)
