"""What is given to the functions and modules in a wrong way is refused in words that help."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.errors import (
    ConfigError,
    FrameError,
    FrameTypeError,
    InputError,
    NotFiniteError,
    UnsupportedError,
)

FRAME = torch.rand(1, 3, 16, 16)


@pytest.fixture
def dense():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


@pytest.fixture
def delta(dense):
    return deltaconvert.convert(dense, backend="reference")


@pytest.mark.parametrize("name", ["x", "input_1"])
def test_inputs_have_the_names_that_forward_gives_them(delta, name):
    said = f"^{name}: no input of that name is left; the inputs are input.$"
    with pytest.raises(FrameError, match=said):
        delta(**{name: FRAME})
    assert torch.equal(delta(input=FRAME), delta(FRAME))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_wrong_with_an_input_is_said_of_its_own_name(dense, backend):
    delta = deltaconvert.convert(dense, backend=backend)
    with pytest.raises(NotFiniteError, match=r"^input 'input' holds 1 numbers that are NaN"):
        delta(FRAME.clone().index_put((torch.tensor(0),) * 4, torch.tensor(torch.nan)))
    with pytest.raises(FrameError, match=r"takes 1 input \(input\), 2 were given"):
        delta(FRAME, FRAME)


@pytest.mark.parametrize("setting", ["strict", "dense_fallback", "graphs"])
def test_what_is_true_or_false_is_no_text(dense, setting):
    with pytest.raises(ConfigError, match=f"{setting}='no': give True or False"):
        deltaconvert.convert(dense, **{setting: "no"})


def test_a_picture_without_a_batch_is_one_lane(dense, delta):
    frames = [torch.rand(3, 16, 16) for _ in range(3)]
    report = deltaconvert.validate(dense, delta, frames)
    assert (report.passed, report.lanes) == (True, 1)
    delta(frames[0])
    with pytest.raises(FrameError, match="lane 1 is not there"):
        delta.reset(lanes=[1])


def test_nothing_in_the_place_of_a_frame(delta):
    with pytest.raises(FrameTypeError, match="no tensor among the inputs; the model takes input"):
        delta(None)


def test_a_converted_model_is_not_scripted(delta):
    with pytest.raises(UnsupportedError, match="is not exported"):
        torch.jit.script(delta)


def test_a_model_with_a_converted_part_is_not_converted(delta):
    whole = nn.Sequential(nn.Identity(), delta)
    with pytest.raises(InputError, match=r"a part of this model, 1, is converted already"):
        deltaconvert.convert(whole)
    assert torch.equal(whole(FRAME), delta(FRAME))


@pytest.mark.parametrize("frames, said", [
    (torch.rand(4, 3, 16, 16), "frames is one tensor of (4, 3, 16, 16): give a list"),
    ("clip.mp4", "frames is a str: give a list"),
    (3, "frames is an int: give a list"),
])
def test_frames_are_a_list(dense, delta, frames, said):
    for take in (lambda: deltaconvert.validate(dense, delta, frames),
                 lambda: deltaconvert.tune(delta, frames)):
        with pytest.raises(InputError, match=re.escape(said)):
            take()


def test_frames_that_are_stacked_are_taken_one_by_one(dense, delta):
    report = deltaconvert.validate(dense, delta, torch.stack([FRAME, FRAME]))
    assert report.passed
    assert report.frames == 2


@pytest.mark.parametrize("error", ["1%", -1, float("nan"), None])
def test_the_error_that_is_allowed_is_a_number(delta, error):
    with pytest.raises(InputError, match="give an error above 0"):
        deltaconvert.tune(delta, [], error=error)


def test_tune_takes_a_converted_model(dense):
    with pytest.raises(InputError, match="tune takes what convert returned, not a Sequential"):
        deltaconvert.tune(dense, [FRAME, FRAME])
