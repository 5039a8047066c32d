"""Inputs that are nested, optional, or beside numbers: as models with a past take them."""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert.errors import FrameError, FrameTypeError
from tests.passes.graphs import Model, frames_like

FRAMES = frames_like(1, 3, 8, 9, count=5)
Pair = namedtuple("Pair", "image scale")


class ConvLSTM(nn.Module):
    """Returns its state, a pair; there is none in the first frame."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gates = nn.Conv2d(3 + 4, 16, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)
        self.double().eval()

    def forward(self, x, state=None, gain: float = 1.0):
        if state is None:
            state = (x.new_zeros(x.shape[0], 4, *x.shape[2:]),) * 2
        hidden, cell = state
        i, f, o, g = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return self.out(hidden) * gain, (hidden, cell)


class Matting(nn.Module):
    """Takes maps of several sizes beside the frame, none of them in the first: video matting."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.double().eval()

    def forward(self, src, r1=None, r2=None, downsample_ratio: float = 1):
        if downsample_ratio != 1:
            src = nn.functional.interpolate(src, scale_factor=downsample_ratio)
        small = nn.functional.avg_pool2d(src, 2)
        r1 = torch.zeros_like(src) if r1 is None else r1
        r2 = torch.zeros_like(small) if r2 is None else r2
        return src * 2, self.fine(torch.cat([src, r1], 1)), self.coarse(torch.cat([small, r2], 1))


def assert_same(one, other):
    (a, spec), (b, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert spec == other_spec
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "paper", "cpu"])
def test_a_state_that_is_a_pair_goes_in_and_out(backend):
    model = ConvLSTM()
    delta = deltaconvert.convert(model, backend=backend)
    state = None
    with torch.no_grad():
        for frame in [*FRAMES, FRAMES[-1], *frames_like(1, 3, 6, 7, count=2)]:
            if state is not None and state[0].shape[2:] != frame.shape[2:]:
                state = None
            wanted = model(frame, state)
            assert_same(delta(frame, state), wanted)
            state = wanted[1]


def test_what_pixels_of_a_state_did_not_change_is_not_computed():
    delta = deltaconvert.convert(ConvLSTM(), backend="reference")
    state = (torch.ones(1, 4, 8, 9).double(), torch.ones(1, 4, 8, 9).double())
    delta(FRAMES[0], state)
    other = state[0].clone()
    other[:, :, 4, 4] = 2
    delta(FRAMES[0], (other, state[1]))
    assert delta.stream.last["gates"].candidates == 9


def test_optional_inputs_are_taken_when_they_come_and_by_name():
    model = Matting()
    delta = deltaconvert.convert(model, backend="reference")
    past = [None, None]
    with torch.no_grad():
        for frame in FRAMES:
            wanted = model(frame, *past)
            assert_same(delta(frame, *past), wanted)
            assert_same(delta(frame, r2=past[1]), model(frame, r2=past[1]))
            past = wanted[1:]
        assert_same(delta(src=FRAMES[0], r2=past[1], r1=past[0]), model(FRAMES[0], *past))


def test_numbers_among_the_inputs_have_graphs_of_their_own():
    model = Matting()
    delta = deltaconvert.convert(model, backend="reference")
    frames = frames_like(1, 3, 8, 8)
    with torch.no_grad():
        for frame in frames:
            for ratio in (0.5, 1, 2.0):
                assert_same(delta(frame, None, None, ratio), model(frame, None, None, ratio))
                assert_same(delta(frame, downsample_ratio=ratio),
                            model(frame, downsample_ratio=ratio))
    assert len(delta._graphs) == 3, "1 is what it defaults to, said or not"


def test_numbers_that_differ_in_each_frame_are_refused_before_memory_is_full():
    delta = deltaconvert.convert(ConvLSTM(), backend="reference")
    for time in range(16):
        delta(FRAMES[0], gain=time / 16)
    delta(FRAMES[0], gain=0.0)
    assert len(delta._graphs) == 16
    with pytest.raises(FrameTypeError, match=r"call number 17 .*\(x, gain=2.5\).* as tensors"):
        delta(FRAMES[0], gain=2.5)


@pytest.mark.parametrize("as_input", [
    lambda x, s: {"image": x, "scale": s}, lambda x, s: {"scale": s, "image": x},
    lambda x, s: Pair(x, {"deep": s})], ids=["dict", "another order", "named tuple"])
def test_containers_are_taken_apart(as_input):
    def forward(self, x):
        image, scale = (x.image, x.scale["deep"]) if isinstance(x, Pair) else (
            x["image"], x["scale"])
        return {"y": self.conv(image) * scale}
    model = Model(forward, conv=nn.Conv2d(3, 3, 3, padding=1)).double()
    given = [as_input(frame, frame.mean((1, 2, 3), keepdim=True)) for frame in FRAMES]
    delta = deltaconvert.convert(model, [given[0]], backend="reference")
    for inputs in given:
        assert_same(delta(inputs), model(inputs))
    report = deltaconvert.validate(model, delta, [(inputs,) for inputs in given])
    assert report.passed, str(report)


def test_a_dict_in_another_order_is_another_call():
    model = Model(lambda self, x: x["a"] - 2 * x["b"])
    delta = deltaconvert.convert(model, [{"a": FRAMES[0], "b": FRAMES[1]}], backend="reference")
    assert_same(delta({"b": FRAMES[1], "a": FRAMES[0]}), FRAMES[0] - 2 * FRAMES[1])
    assert_same(delta({"a": FRAMES[0], "b": FRAMES[1]}), FRAMES[0] - 2 * FRAMES[1])


def test_copies_files_and_settings_keep_how_a_model_is_called(tmp_path):
    model = ConvLSTM()
    delta = deltaconvert.convert(model, backend="reference")
    state = (torch.rand(1, 4, 8, 9).double(), torch.rand(1, 4, 8, 9).double())
    wanted = model(FRAMES[0], state)
    delta(FRAMES[0], state)
    for other in (copy.deepcopy(delta), delta.with_config(delta.config)):
        assert_same(other(FRAMES[0], state), wanted)
        assert_same(other(FRAMES[0]), model(FRAMES[0]))
    deltaconvert.save(delta, tmp_path / "x.delta")
    loaded = deltaconvert.load(tmp_path / "x.delta")
    assert loaded.input_names == ["x", "state_0", "state_1"]
    assert_same(loaded(FRAMES[0], *state), wanted)
    with pytest.raises(FrameError, match=r"takes 3 inputs \(x, state_0, state_1\), 2 were given"):
        loaded(FRAMES[0], state)


def calling(forward):
    return type("Calling", (nn.Module,), {"forward": forward})().eval()


def test_numbers_are_told_apart_as_they_are_written():
    model = calling(lambda self, x, k=1.0: x.abs() / k)
    delta = deltaconvert.convert(model, backend="reference")
    for number in (0.0, -0.0, 0.0, True, 1, 1.0, float("nan"), float("nan")):
        wanted = model(FRAMES[0], number)
        assert torch.equal(delta(FRAMES[0], number).nan_to_num(), wanted.nan_to_num())
    assert len(delta._graphs) == 6


def test_a_file_has_the_numbers_that_the_model_was_converted_with(tmp_path):
    model = calling(lambda self, x, k=2.0: x * k)
    for example, k in ((None, 2.0), ([FRAMES[0], 3.0], 3.0)):
        delta = deltaconvert.convert(model, example, backend="reference")
        for number in (5.0, k, 7.0):
            assert_same(delta(FRAMES[0], number), FRAMES[0] * number)
        deltaconvert.save(delta, tmp_path / "x.delta")
        assert_same(deltaconvert.load(tmp_path / "x.delta")(FRAMES[1]), FRAMES[1] * k)


def test_what_can_be_given_by_its_place_alone_stays_there():
    model = calling(lambda self, x, p=None, *rest: sum(rest, x) if p is None else x - p)
    delta = deltaconvert.convert(model, [FRAMES[0]], backend="reference")
    assert_same(delta(FRAMES[0], None, FRAMES[1]), FRAMES[0] + FRAMES[1])
    model = calling(lambda self, x, p=None, q=None, /: x if q is None else x - q)
    delta = deltaconvert.convert(model, backend="reference")
    assert_same(delta(FRAMES[0], None, FRAMES[1]), FRAMES[0] - FRAMES[1])


def test_a_number_that_has_no_default_is_one_beside_a_frame():
    model = calling(lambda self, x, k, h: x * k if h is None else x * k + h)
    delta = deltaconvert.convert(model, [FRAMES[0], 2.0, None], backend="reference")
    assert_same(delta(FRAMES[0], 2.0, None), FRAMES[0] * 2)
    assert_same(delta(FRAMES[0], 3.0, FRAMES[1]), FRAMES[0] * 3 + FRAMES[1])


@dataclasses.dataclass
class Sample:
    image: torch.Tensor


@pytest.mark.parametrize("inputs, message", [
    ((Sample(FRAMES[0]),), r"holds a Sample, .*register_dataclass\(Sample\)"),
    (([FRAMES[0], object()],), "'x' holds a builtins.object, which is neither a tensor"),
    ((3.0,), "'x' is a float, not a tensor"),
    ((FRAMES[0],) * 4, r"takes 1 input \(x\), 4 were given"),
    (([],), "there is no tensor among the inputs; the model takes x"),
])
def test_what_no_model_takes_is_refused_in_words(inputs, message):
    delta = deltaconvert.convert(ConvLSTM(), backend="reference")
    before = delta(FRAMES[0])
    with pytest.raises(FrameError, match=message):
        delta(*inputs)
    assert_same(delta(FRAMES[0]), before)
