"""A network measured: what the figures are of, and when nothing is measured."""

import dataclasses
import json
import statistics

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.bench import networks, peers, plots, profile, text
from deltaconvert.bench.networks import CONVERTED
from deltaconvert.checking.fidelity import Truth
from deltaconvert.checking.report import jsonable
from deltaconvert.errors import CheckError, InputError


def test_the_figures_have_their_names_and_agree(result):
    data = json.loads(json.dumps(jsonable(result.to_dict()), allow_nan=False))
    for key in ("speedup_over_best_dense_fp32", "speedup_over_eager", "fidelity_rms", "frozen_rms",
                "needed_share", "scheduled_share", "state_bytes", "peak_memory_bytes",
                "update_ratio_input", "update_ratio_nodes", "efficiency", "fps", "skipped",
                "others_cpu_share", "check"):
        assert key in data
    assert data["best_dense_fp32"] == "eager"
    assert data["speedup_over_openvino_bf16"] is None
    eager, mine = (statistics.median(ms for block in data["runtimes"][name]["rounds_ms"]
                                     for ms in block) for name in ("eager", CONVERTED))
    assert data["speedup_over_eager"] == pytest.approx(eager / mine)
    assert data["speedup_over_best_dense_fp32"] == data["speedup_over_eager"]
    assert data["efficiency"] == pytest.approx(data["needed_share"] * eager / mine)
    assert 0 < data["fidelity_rms"] <= data["threshold_search"]["allowed"] <= 0.01
    assert data["frozen_rms"] >= 10 * data["threshold_search"]["allowed"]
    assert 0.05 < data["update_ratio_input"] < 0.2
    assert data["check"]["passed"] is True
    assert data["runtimes"][CONVERTED]["precision"] == "fp32"


def test_a_precision_of_the_settings_stands_beside_its_own_rounding(case, model, frames, result):
    """The threshold is that of the model's own precision, and the error is against it."""
    stored = case.delta.with_config(case.delta.config.replace(dtype="bfloat16"))
    (eager,) = case.peers.ready
    runtimes = peers.Peers([eager, dataclasses.replace(eager, name="openvino-bf16",
                                                       precision="bf16")])
    found = networks.measure(dataclasses.replace(case, delta=stored, peers=runtimes),
                             judge=Truth(model, frames), rounds=2)
    data = found.to_dict()
    assert data["runtimes"][CONVERTED]["precision"] == "bf16"
    assert data["threshold_search"] == result.to_dict()["threshold_search"]
    assert result.dense_rounding is None
    assert 1e-4 < data["dense_rounding_rms"] < 2e-2
    assert data["fidelity_rms"] > 1e-4
    assert data["speedup_over_openvino_bf16"] == data["speedup_over"]["openvino-bf16"] > 0
    said = text.network({**data, "others_cpu_share": 0.0})
    assert "over OpenVINO in bf16" in said
    assert "is what PyTorch's dense network is off in this precision" in said


def test_the_share_is_that_of_the_timed_frames(case, delta, frames):
    """Nine frames behind the first in three rounds of three, of which two are not timed."""
    result = networks.measure(case, rounds=3)
    assert [len(block) for block in result.times[CONVERTED]] == [1, 1, 1]
    stream, needed, dense = delta.new_stream(), 0, 0
    for index, frame in enumerate(frames):
        stream(frame)
        if index in (3, 6, 9):
            needed += sum(work.needed for work in stream.last.values())
            dense += sum(work.dense for work in stream.last.values())
    assert 0 < result.needed_share < 1
    assert result.needed_share == pytest.approx(needed / dense)


def test_kinds_of_nodes_take_all_of_the_time(result):
    names = {kind.name: kind.nodes for kind in result.kinds}
    assert names == {"input": 1, "convolution 3x3": 1, "depthwise 3x3": 1, "convolution 1x1": 1,
                     profile.REST: 0}
    assert sum(kind.share for kind in result.kinds) == pytest.approx(1)
    assert [k.ms for k in result.kinds] == sorted((k.ms for k in result.kinds), reverse=True)


def test_a_transposed_convolution_is_a_kind(frames):
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.MaxPool2d(2)).eval()
    delta = deltaconvert.convert(model, frames[0], backend="reference")
    kinds = {profile.kind_of(node) for node in delta.program(
        delta.signature(frames[:1]), frames[:1]).nodes}
    assert kinds == {"input", "transposed 2x2", "max pool2d"}


def test_a_network_that_is_wrong_is_not_timed(case, model, monkeypatch):
    def never(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(networks, "take_turns", never)
    other = nn.Sequential(*model[:-1], nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(CheckError, match="so nothing was timed") as caught:
        networks.measure(dataclasses.replace(case, model=other))
    assert caught.value.exit_code == 1
    assert "FAILED" in str(caught.value)


def test_an_error_over_the_tolerance_is_not_timed(case):
    held = case.delta.with_config(case.delta.config.replace(threshold=2.0))
    with pytest.raises(CheckError, match="so nothing was timed"):
        networks.measure(dataclasses.replace(case, delta=held), tolerance=1e-3)


def test_a_clip_that_is_too_short(case, frames):
    with pytest.raises(InputError, match="the clip has 3 frames: give at least 4"):
        networks.measure(dataclasses.replace(case, frames=frames[:3]))


def test_tables_and_pictures(result):
    data = {**result.to_dict(), "active_share": 0.1, "others_cpu_share": 0.5,
            "skipped": {"openvino": "openvino is not installed"}}
    said = text.network(data)
    for words in ("converted", "over the best dense fp32 (eager)", "output frozen at frame 0",
                  "left out: openvino", "other processes took 50%", "depthwise 3x3",
                  "standard deviations, moved to"):
        assert words in said
    (axes,) = plots.speedup({"net": [data, {**data, "active_share": 0.01}]}).axes
    over_eager = next(line for line in axes.lines if line.get_label() == "over eager")
    assert list(over_eager.get_xdata()) == [1.0, 10.0]
    (axes,) = plots.time_by_kind({"net": data}).axes
    widths = sum(bar.get_width() for bar in axes.patches)
    assert widths == pytest.approx(sum(kind["ms"] for kind in data["kinds"]))


def test_pictures_have_nothing_in_common(case):
    one, two = case.unrelated[:2]
    assert len(case.unrelated) == networks.UNRELATED_FRAMES
    same = (one == two).all(1).float().mean()
    assert float(same) < 0.01
    assert torch.equal(one, torch.clamp(one, 0, 1))
