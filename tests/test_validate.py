"""What `validate` measures, judges and says; the planted errors that it must find."""

import json
import math

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.backends.reference import ReferenceBackend
from deltaconvert.checking.bisect import bisect
from deltaconvert.checking.dense import StoredModel
from deltaconvert.checking.law import LawChecker, check_law
from deltaconvert.checking.output_errors import slope
from deltaconvert.clips import synthetic
from deltaconvert.errors import FrameError, InputError
from deltaconvert.validate import validate
from deltaconvert.words import text_table
from deltaconvert.work import scales


class Small(nn.Module):
    """Two resolutions, a residual, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.third(x + torch.relu(self.second(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def frames():
    return [frame[None] for frame in synthetic((32, 48), 6, active_share=0.1)]


def converted(model, **settings):
    return deltaconvert.convert(model, backend="reference", **settings)


def plant(monkeypatch, name, amount, where=(0, 0, 5, 7), from_frame=2):
    """Make the reference backend write a wrong number behind one node's step."""
    right = ReferenceBackend.bind

    def bind(self, node, weights, buffers):
        step, calls = right(self, node, weights, buffers), []

        def wrong(*frame):
            work = step(*frame)
            calls.append(1)
            if len(calls) > from_frame:
                buffers.output.value[where] += amount
            return work
        return wrong if node.about.name == name else step

    monkeypatch.setattr(ReferenceBackend, "bind", bind)


class TestExact:
    def test_passes_with_every_figure(self, model, frames):
        report = validate(model, converted(model), frames)
        (output,) = report.outputs
        assert report.passed
        assert report.judged
        assert (report.frames, report.lanes, report.dtype) == (6, 1, "float32")
        assert output.name == "out"
        assert output.worst_relative_rms <= 1e-5 <= output.tolerance < 1e-4
        assert output.max_abs < 1e-5
        assert output.cosine == pytest.approx(1, abs=1e-9)
        assert len(output.frame_rms) == 6
        assert output.frozen_relative_rms > 0.01
        # 10 % of the pixels, and never outside of what a frame and its neighbour differ in.
        assert 0.05 < report.update_ratio_input < 0.15
        assert 0.05 < report.needed <= report.scheduled <= 1.0
        assert report.speed.dense_ms > 0
        assert report.speed.delta_ms > 0
        assert report.state_bytes > report.activation_bytes > 4 * 16 * 24 * (8 + 8 + 4)

    def test_multiply_adds_by_resolution_add_up(self, model, frames):
        report = validate(model, converted(model), frames)
        assert [s.scale for s in report.stages] == ["1/2"]
        assert sum(s.dense_share for s in report.stages) == pytest.approx(1)
        assert sum(s.dense_share * s.needed for s in report.stages) == pytest.approx(report.needed)

    def test_leaves_the_model_in_the_mode_it_was_in(self, model, frames):
        model.train()
        model.second.eval()
        assert validate(model, converted(model), frames).passed
        assert model.training
        assert not model.second.training

    def test_a_model_that_overwrites_its_input_overwrites_a_copy(self, frames):
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).eval()
        frames = [f - 0.5 for f in frames]
        before = [f.clone() for f in frames]
        assert validate(model, converted(model), frames).passed
        assert all(torch.equal(a, b) for a, b in zip(frames, before, strict=True))

    def test_the_modules_own_stream_is_not_touched(self, model, frames):
        delta = converted(model)
        delta(frames[0])
        validate(model, delta, frames)
        assert all(work.frames == 1 for work in delta.statistics.values())

    def test_without_a_model_it_compares_with_the_stored_graph(self, model, frames):
        delta = converted(model)
        with torch.no_grad():
            assert torch.allclose(StoredModel(delta)(frames[0]), model(frames[0]), atol=1e-6)
        assert validate(None, delta, frames).passed

    def test_float64_is_held_to_its_own_precision(self, model, frames):
        model.double()
        report = validate(model, converted(model), [f.double() for f in frames])
        assert report.passed
        assert report.outputs[0].tolerance == 1e-12

    def test_a_network_that_is_itself_inexact_is_allowed_its_own_rounding(self, frames):
        class Cancels(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3, bias=False)
                self.norm = nn.BatchNorm2d(4)

            def forward(self, x):
                return self.norm(self.conv(x + 3000) - self.conv(x))

        torch.manual_seed(0)
        model = Cancels().eval()
        with torch.no_grad():
            constant = model.conv.weight.sum((1, 2, 3)) * 3000
            model.norm.running_mean.copy_(constant)
        report = validate(model, converted(model), frames)
        assert report.outputs[0].tolerance > 1e-3

    def test_own_rounding_is_that_of_the_frame_that_would_fail(self, frames):
        class CancelsLater(nn.Module):
            """A large number is added and taken away again where the first pixel says so."""

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3, bias=False)

            def forward(self, x):
                large = 3000 * x[..., :1, :1]
                return self.conv(x + large) - self.conv(x * 0 + large)

        torch.manual_seed(0)
        model, frames = CancelsLater().eval(), [f.clone() for f in frames]
        for number, frame in enumerate(frames):
            frame[..., :1, :1] = float(number == 3)
        delta = converted(model)
        (output,) = validate(model, delta, frames[:3]).outputs
        assert output.passed
        assert output.tolerance == 1e-5
        (output,) = validate(model, delta, frames).outputs
        assert output.passed
        assert output.worst_frame == 3
        assert output.worst_relative_rms > 1e-5
        assert output.tolerance < 100 * output.worst_relative_rms

    def test_iterators_do(self, model, frames):
        assert validate(model, converted(model), iter(frames)).frames == 6


class TestPlantedErrors:
    def test_names_the_first_node_that_breaks_the_law(self, model, frames, monkeypatch):
        plant(monkeypatch, "second", 0.5, where=(0, 0, 5, 7))
        report = validate(model, converted(model), frames, law_every=1)
        assert not report.passed
        breach = report.breaches[0]
        assert (breach.node, breach.where, breach.frame) == ("second", (0, 5, 7), 2)
        assert breach.change == pytest.approx(0.5, rel=1e-5)
        assert breach.pixels == 1
        text = str(report)
        assert "second (conv2d + relu" in text
        assert "breaks the law in frame 2" in text
        assert "0.5 at lane 0, y 5, x 7; allowed 0 +" in text
        assert "expected  min " in text
        assert text.endswith("FAILED")

    def test_finds_a_breach_that_no_output_shows(self, model, frames, monkeypatch):
        """Small enough for the tolerance, yet no rounding: the last frame is always checked."""
        plant(monkeypatch, "second", 1e-4, from_frame=0)
        report = validate(model, converted(model), frames, tolerance=0.1)
        assert all(o.passed for o in report.outputs)
        assert not report.passed
        assert report.breaches[0].node == "second"

    def test_other_weights_are_told_from_a_broken_node(self, model, frames):
        other = Small().eval()
        report = validate(other, converted(model), frames)
        assert not report.passed
        assert not report.breaches
        assert "is not the dense model it was compared with" in str(report)

    def test_another_structure_is_refused(self, model, frames):
        with pytest.raises(InputError, match=r"Is it the model that was converted\?"):
            validate(nn.Conv2d(3, 4, 3).eval(), converted(model), frames)

    def test_one_bad_frame_cannot_hide_in_a_long_clip(self, model, frames):
        """One frame of 60 is off by 3e-4: a tenth of that over the whole clip."""
        delta, calls = converted(model), []

        class Glitch(nn.Module):
            def forward(self, x):
                calls.append(x.dtype)  # float64 too: to measure the model's own rounding
                out = model(x)
                return out * (1 + 3e-4) if calls.count(torch.float32) == 30 else out

        report = validate(Glitch(), delta, [frames[0]] * 60)
        (output,) = report.outputs
        assert output.worst_frame == 29
        assert output.worst_relative_rms == pytest.approx(3e-4, rel=0.01)
        assert output.relative_rms < output.worst_relative_rms / 7
        assert not report.passed


class TestThresholds:
    def test_without_a_tolerance_it_is_not_judged(self, model, frames):
        report = validate(model, converted(model, threshold=0.01), frames)
        assert report.passed
        assert not report.judged
        assert "no tolerance given: not judged" in str(report)
        assert str(report).endswith("PASSED (the law alone)")

    def test_an_output_that_stands_still_is_called_out(self, model, frames):
        report = validate(model, converted(model, threshold=1e6), frames)
        (output,) = report.outputs
        assert output.rms == pytest.approx(output.frozen_rms, rel=1e-3)
        assert "no better than standing still" in output.remark
        assert output.remark in str(report)

    def test_a_tolerance_of_the_users_is_held_against_the_worst_frame(self, model, frames):
        delta = converted(model, threshold=1e6)
        worst = validate(model, delta, frames).outputs[0].worst_relative_rms
        assert validate(model, delta, frames, tolerance=worst * 1.01).passed
        failed = validate(model, delta, frames, tolerance=worst * 0.99)
        assert not failed.passed
        assert "the error is what the thresholds cost" in str(failed)

    def test_max_abs(self, model, frames):
        delta = converted(model, threshold=1e6)
        largest = validate(model, delta, frames).outputs[0].max_abs
        assert validate(model, delta, frames, max_abs=largest * 1.01).passed
        assert not validate(model, delta, frames, max_abs={"out": largest * 0.99}).passed

    def test_a_clip_without_change_proves_nothing(self, model, frames):
        report = validate(model, converted(model), frames[:1] * 3)
        assert "the clip proves nothing" in report.outputs[0].remark

    def test_one_frame_proves_nothing(self, model, frames):
        report = validate(model, converted(model), frames[:1])
        assert "one frame proves nothing" in str(report)
        assert report.to_dict()["speed"]["dense_ms"] is None


class TestOutputs:
    def test_names_are_paths_into_what_the_model_returns(self, frames):
        class Nested(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x):
                y = self.conv(x)
                return {"a": (y, torch.relu(y)), "label": y.argmax(1)}

        torch.manual_seed(0)
        report = validate(Nested().eval(), converted(Nested().eval()), frames)
        assert [o.name for o in report.outputs] == ["a.0", "a.1", "label"]
        assert not report.passed  # two networks of other weights

    def test_labels_count_1_where_they_differ(self, frames):
        class Label(nn.Module):
            def forward(self, x):
                return x.argmax(1)

        class Wrong(nn.Module):
            def forward(self, x):
                label = x.argmax(1)
                label[:, 0] = 7
                return label

        report = validate(Wrong(), converted(Label().eval()), frames)
        assert report.outputs[0].relative_rms == pytest.approx(math.sqrt(1 / 32))
        assert report.outputs[0].max_abs == 1
        assert validate(Label(), converted(Label().eval()), frames).passed

    def test_equal_infinities_and_nans_are_no_error(self, frames):
        class Logarithm(nn.Module):
            def forward(self, x):
                return torch.log(x.round() - 0.0), torch.sqrt(x - 0.5)

        report = validate(Logarithm().eval(), converted(Logarithm().eval()), frames)
        assert report.passed, report
        assert all("only the rest has an error" in remark for remark in report.remarks)
        json.dumps(report.to_dict(), allow_nan=False)

    def test_outputs_without_a_finite_number_prove_nothing(self, frames):
        class Broken(nn.Module):
            def forward(self, x):
                return x * math.nan

        report = validate(Broken().eval(), converted(Broken().eval()), frames)
        assert not report.passed
        assert len(report.remarks) == 1
        assert "nothing was compared" in report.remarks[0]

    def test_two_inputs(self, frames):
        class Pair(nn.Module):
            def forward(self, x, y):
                return x - y

        pairs = [(f, f.flip(3)) for f in frames]
        assert validate(Pair().eval(), converted(Pair().eval()), pairs).passed


class TestReport:
    def test_to_dict_is_json(self, model, frames):
        data = validate(model, converted(model), frames).to_dict()
        again = json.loads(json.dumps(data, allow_nan=False))
        assert again == data
        assert data["passed"] is True
        assert data["outputs"][0]["passed"] is True
        assert data["speed"]["speedup"] > 0

    def test_text_says_what_was_measured(self, model, frames):
        text = str(validate(model, converted(model), frames))
        assert text.startswith("6 frames of 1 lane, float32; exact; nodes run by reference 5")
        for word in ("frozen", "worst frame", "multiply-adds", "first frame: dense", "state ",
                     "law            holds: 5 nodes checked in 2 frames"):
            assert word in text
        assert text.endswith("PASSED")

    def test_columns_are_aligned(self):
        assert text_table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"


class TestRefusals:
    def test_no_frames(self, model):
        with pytest.raises(InputError, match="the clip holds no frames"):
            validate(model, converted(model), iter(()))

    def test_a_clip_of_two_sizes(self, model, frames):
        with pytest.raises(InputError, match=r"frame 1 has the shape .* a clip has one size"):
            validate(model, converted(model), [frames[0], frames[1][..., :-2]])

    def test_a_dense_model_that_does_not_take_the_frames(self, model, frames):
        with pytest.raises(FrameError, match="the dense model fails on frame 0"):
            validate(nn.Conv2d(4, 4, 1).eval(), converted(model), frames)

    def test_pictures_without_a_batch_in_place_of_frames(self, model, frames):
        norm = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
        with pytest.raises(FrameError, match=r"fails on frame 0 of the shape \[\(3, 32, 48\)\]"):
            validate(norm, converted(norm), list(torch.cat(frames)))

    def test_models_in_the_wrong_order(self, model, frames):
        with pytest.raises(InputError, match="delta is a Sequential, not what convert returned"):
            validate(converted(nn.Sequential()), nn.Sequential(), frames)

    def test_a_tolerance_for_an_output_that_is_not_there(self, model, frames):
        with pytest.raises(InputError, match="tolerance names boxes; the outputs are out"):
            validate(model, converted(model), frames, tolerance={"boxes": 0.1})

    @pytest.mark.parametrize("limits", [{"tolerance": -1.0}, {"max_abs": {"out": float("nan")}}])
    def test_a_limit_that_is_none(self, model, frames, limits):
        with pytest.raises(InputError, match="give a number that is 0 or larger"):
            validate(model, converted(model), frames, **limits)


def test_slope_is_that_of_the_least_squares_line():
    assert slope([1.0, 3.0, 5.0]) == pytest.approx(2)
    assert slope([0.0, 1.0, 0.0]) == pytest.approx(0)
    assert slope([4.0]) == 0


def test_scales_of_odd_sizes(frames):
    halves = [nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)]
    model = nn.Sequential(*halves, nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1)).eval()
    delta = converted(model)
    frame = torch.zeros(1, 3, 45, 77)
    nodes = delta.program(delta.signature([frame]), [frame]).nodes
    assert scales(nodes) == ["1", "1/2", "1/4", "1/8", "1/16", "1/8", "other"]


def test_checker_and_check_law_are_at_hand(model, frames):
    assert check_law(converted(model), frames) == []
    assert LawChecker(converted(model)).breaches == []


@pytest.mark.parametrize("given, what", [(None, "frames is None: give a list"),
                                         ([None], "a frame is a NoneType, not a tensor")])
@pytest.mark.parametrize("look", [
    check_law, bisect, deltaconvert.tune, lambda delta, clip: validate(None, delta, clip)],
    ids=["check_law", "bisect", "tune", "validate"])
def test_what_is_no_clip_is_refused(model, look, given, what):
    with pytest.raises(InputError, match=what):
        look(converted(model), given)
