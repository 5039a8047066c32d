"""The benchmark of many kinds of networks measures what it says."""

from __future__ import annotations

import pytest

from benchmarks import kinds


@pytest.mark.parametrize("spec", ["squeezenet1_1", "super_resolution"])
def test_measures_a_network(spec, monkeypatch):
    monkeypatch.setattr(kinds, "ROUNDS", 1)
    figures = kinds.measure(spec, (48, 64), 0.05, threads=2)
    assert figures.network == spec
    assert 0 < figures.still < figures.moving
    assert 0.01 < figures.needed < 0.9
    assert figures.everywhere > 0
    assert figures.eager > 0
    assert figures.error < 1e-5
    assert spec in kinds.table([figures])
