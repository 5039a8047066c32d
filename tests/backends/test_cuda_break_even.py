"""From which share of the work on the dense way is taken, by what both ways take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.backends.cuda.break_even import LEAST, ROUNDS, SIDES, even, measured
from deltaconvert.backends.cuda.dense import dense_of, foresee
from deltaconvert.backends.rule import change_norm
from tests.backends.test_cuda_networks import Small, small_clip
from tests.cuda.host.launcher import HostLauncher, compiler


@pytest.mark.parametrize("points, dense, wanted", [
    ([(0.1, 1.0), (0.2, 2.0), (0.4, 3.0)], 2.5, 0.3),
    ([(0.1, 1.0), (0.2, 2.0)], 1.5, 0.15),
    ([(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)], 5.0, 0.5),  # dearer than all that was tried
    ([(0.1, 1.0), (0.2, 1.0)], 5.0, math.inf),  # the same whatever there is to do
    ([(0.1, 1.0), (0.1, 1.5)], 5.0, math.inf),
    ([(0.1, 2.0)], 1.0, 0.05),  # dense is faster for the least that was tried
    ([(0.01, 9.0)], 1.0, LEAST),
    ([(0.0, 9.0)], 1.0, math.inf),  # nothing has less to do by it
    ([(0.1, 1.0), (0.2, 0.9), (0.4, 2.0)], 1.5, pytest.approx(0.2 + 0.2 * 0.6 / 1.1)),
])
def test_lines_between_points_say_where_both_ways_are_even(points, dense, wanted):
    assert even(points, dense) == (wanted if not isinstance(wanted, float)
                                   else pytest.approx(wanted))


class Ways:
    """A small network behind two frames, both of its ways, and a clock that counts its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dense: float) -> None:
        compiler()
        monkeypatch.setattr(cuda, "create", lambda config, device: CudaBackend(
            config, device, HostLauncher()))
        self.delta = deltaconvert.convert(Small(), backend="cuda", threshold=0.05)
        for frame in small_clip()[:2]:
            self.delta(frame)
        self.state, self.dense_ms = self.delta.stream._state, dense
        self.runner, self.context = self.state.runner, self.state.context
        nodes = [n for n in self.runner.nodes if n.about.rule != "sparsify"]
        self.steps = [self.state.steps[n.about.name] for n in nodes]
        for node, step in zip(nodes, self.steps, strict=True):
            foresee(node, step, self.context)
        self.context.costs /= self.context.cost_of_all
        self.ran: list[tuple[str, float]] = []

    def sparse(self) -> None:
        for step in self.steps:
            step()

    def dense(self) -> None:
        self.context.launcher.launch(self.runner._everything())
        for step in self.steps:
            dense_of(step)()

    def clock(self, run: Callable[[], None]) -> float:
        """A first round takes long; the sparse way takes a second, and ten for all of the work."""
        name = run.__name__
        found = sum(1 for ran, _ in self.ran if ran == name)
        changed = float(self.state.edges["x"].mask.float().mean())
        run()
        self.ran.append((name, changed))
        if found % ROUNDS == 0:
            return 100.0
        if name == "dense":
            return self.dense_ms
        return 1.0 + 9.0 * float((self.context.counters * self.context.costs).sum())

    def measured(self) -> float:
        return measured(self.context, self.runner.nodes, self.runner.doors, self.runner.begin,
                        self.sparse, self.dense, self.clock)


def furthest_from_the_law(delta: Any) -> float:
    state = delta.stream._state
    found = [0.0]
    for node in delta.stream.program.nodes:
        about = node.about
        if about.rule in ("sparsify", "densify") or about.aliases:
            continue
        edge = state.edges[about.name]
        new = node.evaluate(*(state.edges[read.name].value for read in about.inputs))
        left = change_norm(new, edge.value, about.norm, about.output.is_map, about.output.has_lanes)
        found.append(float(left.max()) - float(max(edge.threshold)))
    return max(found)


def test_both_ways_are_timed_and_nothing_is_left_of_it(monkeypatch):
    ways = Ways(monkeypatch, dense=5.5)
    kept = [(t, t.clone()) for t in (
        ways.context.thresholds, ways.context.counters, ways.state.masks, ways.context.work,
        ways.state.edges["x"].value)]
    last = ways.delta.stream.last
    assert ways.measured() == pytest.approx(0.5)
    for now, before in kept:
        assert torch.equal(now, before)
    assert ways.delta.stream.last == last
    assert furthest_from_the_law(ways.delta) < 1e-5
    assert ways.ran[-1] == ("dense", 0.0), "the last one leaves nothing held back"
    for frame in small_clip():
        ways.delta(frame)
        assert furthest_from_the_law(ways.delta) < 1e-5


def test_rectangles_grow_until_the_dense_way_is_faster(monkeypatch):
    ways = Ways(monkeypatch, dense=1000.0)
    assert ways.measured() == pytest.approx(111.0)
    changed = [share for name, share in ways.ran if name == "sparse"]
    height, width = small_clip()[0].shape[2:]
    wanted = [len(range(*slice(round(height * (1 - s) / 2), round(height * (1 + s) / 2)).indices(
        height))) * len(range(*slice(round(width * (1 - s) / 2), round(
            width * (1 + s) / 2)).indices(width))) / (height * width) for s in SIDES]
    assert changed == pytest.approx([share for share in wanted for _ in range(ROUNDS)])
    few = Ways(monkeypatch, dense=1.1)
    assert few.measured() < 0.5
    assert sum(1 for name, _ in few.ran if name == "sparse") == ROUNDS, "the least was too much"
