"""Thresholds for a fidelity."""

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.checking.fidelity import Truth
from deltaconvert.clips import synthetic
from deltaconvert.config import NodeConfig
from deltaconvert.errors import FrameError, InputError
from deltaconvert.tune import DOORS, MOST, tune

ERROR = 0.02


@pytest.fixture(scope="module")
def frames():
    return [frame[None] for frame in synthetic((96, 128), 8, active_share=0.05, seed=3)]


@pytest.fixture(scope="module")
def model(frames):
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((3, 8, 2), *[(8, 8, 1)] * 3, (8, 16, 2), *[(16, 16, 1)] * 5):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
    made = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, 1, 1))
    batch_norm_statistics(made, frames)
    return made


@pytest.fixture(scope="module")
def delta(model, frames):
    return deltaconvert.convert(model, frames[0], backend="reference")


@pytest.fixture(scope="module")
def tuning(delta, frames):
    return tune(delta, frames, error=ERROR)


def test_every_frame_is_within_the_error_and_the_law_holds(tuning, model, frames):
    report = deltaconvert.validate(model, tuning.delta, frames, tolerance=ERROR, law_every=1)
    assert report.passed
    assert report.outputs[0].worst_relative_rms == pytest.approx(tuning.best.error, rel=1e-3)
    assert report.needed == pytest.approx(tuning.best.needed, rel=1e-3)


def test_the_single_threshold_is_the_largest_that_passed(tuning):
    assert tuning.passed
    assert tuning.allowed == ERROR
    passed = [t for t, error in tuning.tried if error <= ERROR]
    failed = [t for t, error in tuning.tried if error > ERROR]
    assert tuning.threshold == max(passed) < min(failed)
    assert dict(tuning.tried)[tuning.threshold] == tuning.single.error <= ERROR


def test_thresholds_by_node_save_more_than_one_for_all(tuning):
    assert tuning.best.needed < tuning.single.needed
    found = [group.threshold for group in tuning.groups]
    assert max(found) > 1.5 * min(found) > 0
    own = tuning.delta.config.nodes
    assert sorted(own) == sorted(name for group in tuning.groups for name in group.nodes)
    assert (tuning.delta.config.threshold_unit, tuning.delta.config.norm) == ("std", "rms")


def test_without_rounds_there_is_one_threshold(delta, frames, tuning):
    single = tune(delta, frames, error=ERROR, rounds=0)
    assert single.best == single.single == tuning.single
    assert {group.threshold for group in single.groups} == {single.threshold}


def test_what_the_user_said_of_a_node_stays(delta, frames, tuning):
    own = delta.with_config(delta.config.replace(nodes={"3": 0.25}))
    found = tune(own, frames, error=ERROR, rounds=1)
    kept = next(n.about.name for n in found.delta.program(
        found.delta.signature([frames[0]]), [frames[0]]).nodes if n.about.path == "3")
    assert kept in {name for group in tuning.groups for name in group.nodes}
    assert kept not in {name for group in found.groups for name in group.nodes}
    assert found.delta.config.nodes["3"] == NodeConfig(threshold=0.25)


def test_another_precision_takes_the_thresholds_of_the_models_own(delta, frames, tuning):
    stored = delta.with_config(delta.config.replace(dtype="bfloat16"))
    found = tune(stored, frames, error=ERROR)
    assert found.delta.config.dtype == "bfloat16"
    assert found.delta.config.nodes == tuning.delta.config.nodes


def test_a_dense_model_in_training_mode_is_evaluated_and_put_back(model, delta, frames, tuning):
    model.train()
    try:
        found = tune(delta, frames, error=ERROR, model=model, rounds=0)
        assert model.training
    finally:
        model.eval()
    assert found.single.error == pytest.approx(tuning.single.error, rel=1e-3)


def test_the_given_module_is_left_alone(delta, frames, tuning):
    assert delta.config.threshold == 0
    fresh = deltaconvert.convert(delta._root, frames[0], backend="reference")
    assert torch.equal(delta(frames[1]), fresh(frames[1]))


def test_a_file_keeps_them(tuning, frames, tmp_path):
    deltaconvert.save(tuning.delta, tmp_path / "tuned.delta")
    loaded = deltaconvert.load(tmp_path / "tuned.delta")
    assert loaded.config == tuning.delta.config
    stream, same = tuning.delta.new_stream(), loaded.new_stream()
    for frame in frames:
        assert torch.equal(stream(frame), same(frame))


def test_a_clip_that_stands_still_is_told_nothing_by_a_tenth_of_nothing(model, delta, frames):
    still = [frames[0]] * 3
    found = tune(delta, still, judge=Truth(model, still))
    assert (found.allowed, found.threshold, found.best.needed) == (0.0, 0.0, 0.0)


def test_where_nothing_is_allowed_nothing_is_held_back(model, delta, frames):
    found = tune(delta, frames, error=1e-9)
    assert not found.passed
    assert set(found.delta.config.nodes.values()) == {NodeConfig(threshold=0.0)}
    assert found.best.error < 1e-5
    assert found.best.needed > 0.1
    assert "nothing is held back" in str(found)


def test_a_camera_s_noise_is_held_back_at_the_door(delta, frames):
    generator = torch.Generator().manual_seed(0)
    noisy = [f + 0.003 * torch.randn(f.shape, generator=generator) for f in frames]
    found = tune(delta, noisy, error=0.1, rounds=0)
    door = found.delta.config.input_threshold
    assert any(door == pytest.approx(part * float(noisy[0].std()), rel=0.05) for part in DOORS)
    own = delta.with_config(delta.config.replace(input_threshold=1e-9))
    set_by_user = tune(own, noisy, error=0.1, rounds=0)
    assert set_by_user.delta.config.input_threshold == 1e-9
    assert found.best.needed < set_by_user.best.needed


def test_a_judge_of_ones_own(delta, frames):
    class Largest:
        """Allows what the top channel's mean is off, by 1."""

        goal, allowed, tolerance = "means that agree", 1.0, None
        called = 0

        def worst_error(self, run, stop_above=float("inf"), most_frames=None):
            self.called += 1
            return 0.0 if len([run(frame) for frame in frames[:most_frames]]) else 1.0

    judge = Largest()
    found = tune(delta, frames, judge=judge, rounds=0)
    assert judge.called >= 7
    assert found.goal == "means that agree"
    assert found.threshold > 0.9 * 2**MOST


@pytest.mark.parametrize(("given", "said"), [
    ({"error": 0.0}, "error=0.0"), ({"error": float("nan")}, "error=nan"),
    ({"rounds": -1}, "rounds=-1")])
def test_wrong_settings(delta, frames, given, said):
    with pytest.raises(InputError, match=said):
        tune(delta, frames, **given)


def test_a_clip_of_one_frame(delta, frames):
    with pytest.raises(InputError, match="the clip has 1 frame: nothing is held back in the first"):
        tune(delta, frames[:1])


def test_frames_that_the_model_does_not_take(delta, frames):
    with pytest.raises(FrameError):
        tune(delta, [f[:, :2] for f in frames])


def test_what_was_tuned_before_has_nothing_left_to_find(frames, tuning):
    with pytest.raises(InputError, match=r"every node has a threshold of its own.*as convert made"):
        tune(tuning.delta, frames)


def test_a_model_converted_in_part(model, frames):
    islands = deltaconvert.convert(nn.Sequential(model), frames[0], modules=["0"],
                                   backend="reference")
    with pytest.raises(InputError, match=r"tune an island, delta.islands\[path\]"):
        tune(islands, frames)
