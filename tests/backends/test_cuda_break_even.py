"""From which share of the work on the dense way is taken, by what both ways take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.backends.cuda.break_even import (
    ALWAYS_SPARSE,
    ROUNDS,
    SIDES,
    Frames,
    even,
    measured,
)
from deltaconvert.backends.cuda.dense import dense_of, foresee
from deltaconvert.backends.rule import change_norm
from deltaconvert.cuda.launcher import Launch
from tests.backends.test_cuda_networks import Small, small_clip
from tests.cuda.host.launcher import HostLauncher, compiler

NOTHING = None


@pytest.fixture(autouse=True)
def _exact():
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.mark.parametrize("points, dense, wanted", [
    ([(0.1, 1.0), (0.2, 2.0), (0.4, 3.0)], 2.5, 0.3),
    ([(0.1, 1.0), (0.2, 2.0)], 1.5, 0.15),
    ([(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)], 5.0, 0.5),  # dearer than all that was tried
    ([(0.1, 1.0), (0.2, 1.9), (0.3, 3.0)], 5.0, 0.5),  # by the first and the last
    ([(0.1, 1.0), (0.2, 1.0)], 5.0, ALWAYS_SPARSE),  # the same whatever there is to do
    ([(0.1, 1.2), (0.2, 1.0)], 5.0, ALWAYS_SPARSE),
    ([(0.1, 1.0), (0.1, 1.5)], 5.0, NOTHING),
    ([(0.0, 2.0), (0.0, 2.0)], 1.0, NOTHING),  # the doors let nothing in
    ([(0.1, 2.0), (0.2, 2.5)], 1.0, 0.0),  # dense is faster for the least that was tried
    ([(0.1, 9.0), (0.2, 1.0), (0.3, 2.0)], 1.5, 0.25),  # the first was held up
    ([(0.1, 1.0), (0.2, 0.9), (0.4, 2.0)], 1.5, 0.2 + 0.2 * 0.6 / 1.1),
])
def test_lines_between_points_say_where_both_ways_are_even(points, dense, wanted):
    found = even(points, dense)
    assert found is None if wanted is NOTHING else found == pytest.approx(wanted)


class HostGraph:
    """A small network behind two frames; its graph, and a clock that counts its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dense: float) -> None:
        compiler()
        monkeypatch.setattr(cuda, "create", lambda config, device: CudaBackend(
            config, device, HostLauncher()))
        self.delta = deltaconvert.convert(Small(), backend="cuda", threshold=0.01)
        for frame in small_clip()[:2]:
            self.delta(frame)
        self.state, self.dense_ms = self.delta.stream._state, dense
        self.runner, self.context = self.state.runner, self.state.context
        nodes = [n for n in self.runner.nodes if n.about.rule != "sparsify"]
        self.steps = [self.state.steps[n.about.name] for n in nodes]
        for node, step in zip(nodes, self.steps, strict=True):
            foresee(node, step, self.context)
        self.end = self.runner._end()  # with costs
        self.way = torch.zeros(1, dtype=torch.int32)
        self.condition = self.runner._condition(2)
        self.condition.args.condition = self.way.data_ptr()
        self.updated: list[Launch] = []
        self.ran: list[tuple[int, float]] = []  # ways, and the share of pixels that changed

    def update(self, launch: Launch) -> None:
        self.updated.append(launch)

    def replay(self) -> None:
        (door,), launch = self.runner.doors, self.context.launcher.launch
        assert self.updated[-2:] == [door.examination, door.replacement]
        for one in (door.examination, self.runner.begin, door.replacement, self.condition):
            launch(one)
        if int(self.way) == 1:
            launch(self.runner._everything())
        for step in self.steps:
            (dense_of(step) if int(self.way) else step)()
        launch(self.end)
        self.ran.append((int(self.way), float(door.buffers.output.mask.float().mean())))

    def clock(self, run: Callable[[int], None], rounds: int) -> list[float]:
        """First rounds take long; the sparse way takes a second, and ten for all of the work."""
        times = []
        for turn in range(rounds):
            run(turn)
            took = 1.0 + 9.0 * float(self.context.work[0])
            times.append(100.0 if turn < 2 else self.dense_ms if int(self.way) else took)
        return times

    def measured(self) -> float | None:
        return measured(self.context, self.runner.doors, self, self.clock)


def furthest_from_the_law(delta: Any) -> float:
    state, found = delta.stream._state, [0.0]
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
    graph = HostGraph(monkeypatch, dense=5.5)
    kept = [(t, t.clone()) for t in (
        graph.context.counters, graph.context.totals, graph.state.masks, graph.context.work,
        graph.context.pending, *(edge.value for edge in graph.state.edges.values()))]
    last, totals = graph.delta.stream.last, graph.delta.stream.totals
    assert graph.measured() == pytest.approx(0.5)
    for now, before in kept:
        assert torch.equal(now, before)
    assert (graph.delta.stream.last, graph.delta.stream.totals) == (last, totals)
    assert {way for way, _ in graph.ran[:ROUNDS]} == {1}
    assert {way for way, _ in graph.ran[ROUNDS:]} == {0}
    for frame in small_clip():
        graph.delta(frame)
        assert furthest_from_the_law(graph.delta) < 1e-5


def test_rectangles_grow_until_the_dense_way_is_faster(monkeypatch):
    graph = HostGraph(monkeypatch, dense=1000.0)
    assert graph.measured() == pytest.approx(111.0, rel=1e-3)
    shares = [share for way, share in graph.ran if way == 0]
    height, width = small_clip()[0].shape[2:]
    wanted = [max(1, round(height * s)) * max(1, round(width * s)) / (height * width)
              for s in SIDES for _ in range(ROUNDS)]
    assert shares == pytest.approx(wanted)
    few = HostGraph(monkeypatch, dense=1.0)
    assert few.measured() == 0.0
    assert sum(1 for way, _ in few.ran if way == 0) == 2 * ROUNDS, "the least was too much"


@pytest.mark.parametrize("value", [0.0, 65000.0])
def test_made_frames_are_finite_and_others(value, monkeypatch):
    (door,) = HostGraph(monkeypatch, dense=1.0).runner.doors
    edge = door.buffers.output
    monkeypatch.setattr(edge, "value", torch.full_like(edge.value, value, dtype=torch.half))
    edge.value[..., 0] = -value
    made = Frames(door)
    made.change(3 / 4)
    assert made.changed.isfinite().all()
    assert (made.changed != edge.value).any(1).float().mean() > 0.2


def test_doors_that_let_nothing_in_say_nothing(monkeypatch):
    graph = HostGraph(monkeypatch, dense=5.0)
    monkeypatch.setattr(Frames, "change", lambda *_: None)
    assert graph.measured() is None
