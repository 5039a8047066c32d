"""The cpu backend's dense fallback: both ways of a convolution, and what chooses between them."""

from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deltaconvert
from deltaconvert.backends.cpu.convolutions import break_even, fallback
from deltaconvert.backends.cpu.convolutions.break_even import NEVER, BreakEvens

# Before it is a constant:
from deltaconvert.backends.cpu.convolutions.fallback import break_even as measured
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.checking.law import LawChecker
from deltaconvert.config import Config
from deltaconvert.work import Work
from tests.backends.cpu import test_backend
from tests.backends.cpu.test_backend import CASES, LANES, Stream, make_node

CONVOLUTIONS = [name for name, (call, _) in CASES.items() if call[0] == "conv2d"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 0.0)


def force(patch: pytest.MonkeyPatch, share: float) -> None:
    """Have convolutions of any size go dense from a share of a lane on."""
    patch.setattr(fallback, "LEAST_NS", 0)
    patch.setattr(fallback, "break_even", lambda *_: share)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.usefixtures("always")
def test_dense_equals_the_reference(name: str, threads: int) -> None:
    stream = Stream(make_node(CASES[name]), Config(threads=threads), beside=5)
    stream.run()
    assert isinstance(stream.step.task, fallback.Fallback)
    assert stream.step.task.rest.listed[0] == 0


@pytest.mark.parametrize("name", ["conv 3x3", "conv 7x7 of 3 channels", "depthwise"])
def test_bands_of_single_lines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    force(monkeypatch, 0.0)
    monkeypatch.setattr(fallback, "BAND_NUMBERS", 1)
    Stream(make_node(CASES[name], threshold=0.5), Config(threads=2)).run()


@pytest.mark.parametrize("name", ["conv 3x3", "conv 1x1", "conv of 16 + residual", "depthwise",
                                  "conv to 3 channels", "grouped"])
def test_each_lane_chooses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    force(monkeypatch, 0.5)
    stream = Stream(make_node(CASES[name]), Config(threads=2))
    plane, adds = stream.output.spec.pixels, stream.node.about.multiply_adds
    stream.change(1.0, range(LANES))
    stream.check()
    stream.state.fresh[:] = [False] * LANES
    stream.change(0.6, [1])
    for edge in stream.inputs:  # and a pixel of another lane
        edge.value[0, :, 5, 6] += 1
        edge.mask[0, 5, 6] = 1
        edge.publish(edge.mask.flatten(1).sum(1).tolist())
    work = stream.check()
    assert isinstance(stream.step, CompiledStep)
    pixels = stream.step.head.parts.pixels[:work.candidates]
    first, second, third = np.bincount(pixels // plane, minlength=LANES).tolist()
    assert 0 < first < plane // 2 < second <= plane
    assert third == 0
    assert work.scheduled == (first + plane) * adds
    stream.change(0.01, [2])
    work = stream.check()
    assert work.scheduled == work.candidates * adds
    stream.change(0.0, [])
    assert stream.check() == (0, 0)


class Residual(nn.Module):
    """A first convolution, a block with a residual, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.wide, self.deep = nn.Conv2d(24, 48, 1), nn.Conv2d(48, 48, 3, 1, 1, groups=48)
        self.back, self.head = nn.Conv2d(48, 24, 1), nn.Conv2d(24, 5, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = F.silu(x + self.back(F.hardswish(self.deep(self.wide(x)))))
        return self.head(x), x.mean((2, 3))


def frames(lanes: int = 2) -> list[Tensor]:
    """Pictures that differ everywhere, in one lane, in some lines, and not at all."""
    made = [torch.rand(lanes, 3, 40, 56) for _ in range(2)]
    made.append(made[-1].clone())
    made[-1][0] = torch.rand(3, 40, 56)
    made.append(made[-1].clone())
    made[-1][:, :, 3:7] += 0.25
    made.append(made[-1].clone())
    made[-1][1, :, 8:32] -= 0.25  # much of a lane, but not all
    return [*made, made[-1].clone()]


@pytest.mark.parametrize("share", [0.0, 0.4, NEVER])
@pytest.mark.parametrize("settings", [
    {}, {"threshold": 0.05, "norm": "rms"}, {"threads": 1}, {"dtype": "bfloat16"}])
def test_networks_obey_the_law(monkeypatch: pytest.MonkeyPatch, share: float,
                               settings: dict[str, Any]) -> None:
    force(monkeypatch, share)
    delta = deltaconvert.convert(Residual().eval(), **{"threads": 2, **settings})
    LawChecker(delta)  # observed frames go step by step
    alone = deltaconvert.convert(Residual().eval(), **{"threads": 2, **settings})
    work = Work()
    for frame in frames():
        delta(frame)
        alone(frame)
        work.add(alone.stream)
    total = work.total()
    falls_back = share < NEVER and "dtype" not in settings
    assert (total.scheduled > total.needed) is falls_back


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_outputs_are_those_of_the_dense_model(monkeypatch: pytest.MonkeyPatch,
                                              share: float) -> None:
    force(monkeypatch, share)
    model = Residual().eval()
    delta = deltaconvert.convert(model, threads=2)
    for frame in frames():
        for found, wanted in zip(delta(frame), model(frame), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_setting_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 0.0)
    delta = deltaconvert.convert(Residual().eval(), threads=1, dense_fallback=False)
    for frame in frames():
        delta(frame)
        assert all(work.scheduled == work.needed for work in delta.stream.last.values())


def test_autocast_around_a_frame_is_nothing_to_float32_maps(always: None) -> None:
    stream = Stream(make_node(CASES["conv 3x3"]), Config(threads=1))
    with torch.autocast("cpu", torch.bfloat16):
        stream.change(1.0, range(LANES))
        stream.step()
    new = stream.node.evaluate(*(edge.value for edge in stream.inputs))
    torch.testing.assert_close(stream.output.value, new, **test_backend.CLOSE)


def test_what_pytorch_raises_is_raised(monkeypatch: pytest.MonkeyPatch, always: None) -> None:
    model = Residual().eval()
    delta = deltaconvert.convert(model, threads=2)
    first, second = frames()[:2]
    delta(first)

    def fail(*_: object) -> None:
        raise RuntimeError("no such band")

    with monkeypatch.context() as patch:
        patch.setattr(fallback.F, "conv2d", fail)
        with pytest.raises(RuntimeError, match="no such band"):
            delta(second)
    for found, wanted in zip(delta(first), model(first), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class TestBreakEven:
    def ways(self, ours: float, dense: float) -> Any:
        """Steps that take so many milliseconds."""
        return lambda: (lambda: time.sleep(ours / 1e3), lambda: time.sleep(dense / 1e3))

    def test_it_is_dense_time_over_ours(self) -> None:
        known = BreakEvens(None)
        assert 0.1 < known.share("slow", self.ways(10, 2)) < 0.4
        assert known.share("like", self.ways(2, 2)) == NEVER
        assert known.share("fast", self.ways(1, 5)) == NEVER

    def test_what_dense_seems_to_win_is_measured_twice(self, monkeypatch: pytest.MonkeyPatch
                                                       ) -> None:
        found = iter([0.3, 1.2, 1.2, 0.3, 0.5])  # in the first, another program ran
        monkeypatch.setattr(break_even, "break_even", lambda *_: next(found))
        known = BreakEvens(None)
        assert known.share("a", self.ways(1, 1)) == NEVER
        assert known.share("b", self.ways(1, 1)) == NEVER
        assert known.share("c", self.ways(1, 1)) == 0.5

    def test_a_kind_is_measured_once_and_kept(self, tmp_path: Path) -> None:
        known = BreakEvens(tmp_path)
        share = known.share("slow", self.ways(10, 2))
        known.save()
        assert known.share("slow", _never_asked) == share
        again = BreakEvens(tmp_path)
        assert again.share("slow", _never_asked) == share
        assert [p.name for p in tmp_path.iterdir()] == [again.path.name]

    def test_two_processes_keep_both(self, tmp_path: Path) -> None:
        one, other = BreakEvens(tmp_path), BreakEvens(tmp_path)
        one.share("a", self.ways(4, 1))
        other.share("b", self.ways(4, 1))
        one.save()
        other.save()
        known = BreakEvens(tmp_path)
        assert known.share("a", _never_asked) < 1 > known.share("b", _never_asked)

    @pytest.mark.parametrize("text", ["", "[1, 2]", '{"slow": "much"}', '{"slow": null}', "\xff",
                                      '{"slow": -1.0}', '{"slow": NaN}', '{"slow": [0.5]}',
                                      '{"slow": 1' + 400 * "0" + "}",
                                      pytest.param(100_000 * "[", id="deep")])
    def test_what_cannot_be_read_is_measured_anew(self, tmp_path: Path, text: str) -> None:
        known = BreakEvens(tmp_path)
        known.path.write_text(text, "latin-1")
        known = BreakEvens(tmp_path)
        assert 0 < known.share("slow", self.ways(10, 2)) < 0.5
        known.save()
        assert list(json.loads(known.path.read_text("utf-8"))) == ["slow"]

    def test_a_folder_that_cannot_be_written_to_is_no_error(self, tmp_path: Path) -> None:
        known = BreakEvens(tmp_path / "gone")
        share = known.share("slow", self.ways(10, 2))
        known.save()
        assert known.share("slow", _never_asked) == share

    def test_time_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(break_even, "MOST_SECONDS", 0.0)
        known = BreakEvens(None)
        assert known.share("slow", self.ways(10, 2)) < 1
        assert known.share("another", _never_asked) == NEVER

    @pytest.mark.parametrize("what", ["processor", "os.cpu_count"])
    def test_another_machine_has_another_file(self, monkeypatch: pytest.MonkeyPatch,
                                              tmp_path: Path, what: str) -> None:
        here = BreakEvens(tmp_path)
        monkeypatch.setattr(f"{break_even.__name__}.{what}", lambda: "other")
        assert BreakEvens(tmp_path).path != here.path


def _never_asked() -> Any:
    raise AssertionError("measured again")


def test_a_node_is_measured_before_its_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways are run, on its own buffers, and leave nothing there that a frame would see."""
    known, ran = BreakEvens(None), []

    def both(ours: Any, dense: Any) -> float:
        for way in (ours, dense, ours):
            way()
        ran.append(1)
        return 0.5

    force(monkeypatch, 0.0)
    monkeypatch.setattr(fallback, "break_even", measured)
    monkeypatch.setattr(fallback, "of_this_machine", lambda folder: known)
    monkeypatch.setattr(break_even, "break_even", both)
    Stream(make_node(CASES["conv 3x3"]), Config(threads=2)).run()
    assert len(ran) == 2  # as it would change what is done
    stream = Stream(make_node(CASES["conv 3x3"]), Config(threads=2))
    stream.run()
    assert len(ran) == 2
    assert stream.step.beyond[1] > 0


def test_it_is_kept_beside_the_compiled_code(always: None) -> None:
    deltaconvert.convert(Residual().eval(), threads=1)(frames()[0])
    folder = fallback._split.folder
    assert folder is not None
    assert list(folder.glob("fallback*.nbi"))
    assert BreakEvens(folder).path.parent == folder


def test_streams_share_the_weights(always: None) -> None:
    delta = deltaconvert.convert(Residual().eval(), threads=1)
    first = frames()[0]
    delta(first)
    held = dict(fallback._weights)
    delta.new_stream()(first)
    assert len(held) >= 5
    assert dict(fallback._weights) == held


def test_a_stream_is_gone_with_its_last_name(always: None) -> None:
    stream = deltaconvert.convert(Residual().eval(), threads=1).new_stream()
    stream(frames()[0])
    engine = stream._state.context
    assert engine.calls_python
    held = [weakref.ref(engine), weakref.ref(stream._state.edges["stem"].value)]
    gc.disable()
    try:
        del stream, engine
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()
