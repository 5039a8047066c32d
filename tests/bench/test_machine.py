"""What is recorded of the machine, and its memory."""

import pytest
import torch

from deltaconvert.bench import machine, memory


def test_versions_threads_and_processor_are_recorded():
    found = machine.describe(3)
    assert found["threads"] == 3
    assert found["libraries"]["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert found["processor"]
    assert "3 threads" in machine.in_words(found)


def test_what_others_take_is_counted(monkeypatch):
    """Of 4 core seconds others were busy in 1, this process in 2."""
    counts = iter([machine._Cpu(10.0, 100.0, 5.0), machine._Cpu(13.0, 104.0, 7.0)])
    monkeypatch.setattr(machine, "_cpu_seconds", lambda: next(counts))
    assert machine.Others().share() == pytest.approx(0.25)


def test_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(machine, "_cpu_seconds", lambda: None)
    assert machine.Others().share() is None


def test_a_warning_says_how_busy():
    assert machine.warning(None) == machine.warning(0.01) == ""
    assert "40% of the cores' time" in machine.warning(0.4)


def test_growth_is_the_peak_over_the_start():
    growth = memory.Growth()
    kept = torch.ones(5_000_000)  # 20 MB, stays
    growth.watch()
    for _ in range(2):
        del_later = torch.ones(10_000_000)  # 40 MB, goes
        del del_later
    found = growth.bytes()
    if found is None:
        pytest.skip("this system has no peak that can be started anew")
    assert float(kept[0]) == 1
    assert 55e6 < found < 120e6
