"""What of a forward's parameters a converted model is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.passes.tracing.input_parameters import input_parameters
from tests.passes.graphs import frames_like

FRAMES = frames_like(1, 3, 6, 7)
ONE = torch.ones(1)


def all_optional(pixel_values=None, labels=None, return_dict=None, **kwargs): ...
def a_state(frame, past=None, scale=2.0, *, mask=None): ...
def a_tensor_by_default(x, y=ONE, z=None): ...
def by_name_alone(*, x, y=None): ...
def nothing(*args, **kwargs): ...


@pytest.mark.parametrize("forward, given, names", [
    (all_optional, 0, ["pixel_values"]),
    (all_optional, 2, ["pixel_values", "labels"]),
    (a_state, 0, ["frame"]),
    (a_state, 2, ["frame", "past"]),
    (a_state, 3, ["frame", "past"]),
    (a_tensor_by_default, 0, ["x", "y"]),
    (a_tensor_by_default, 3, ["x", "y", "z"]),
    (by_name_alone, 2, ["x"]),
    (nothing, 1, []),
])
def test_inputs_are_what_must_be_given(forward, given, names):
    assert [p.name for p in input_parameters(forward, given)] == names


class Optional(nn.Module):
    """As models of Hugging Face are written."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, pixel_values=None, labels=None, return_dict=None, **kwargs):
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        out = self.conv(pixel_values)
        return {"logits": out, "loss": None if labels is None else out - labels}


def test_the_first_of_many_optional_arguments_is_the_frame():
    model = Optional().double().eval()
    delta = deltaconvert.convert(model)
    assert delta.input_names == ["pixel_values"]
    for frame in FRAMES:
        wanted = model(frame)["logits"].detach()
        for out in (delta(frame), delta(pixel_values=frame)):
            assert out["loss"] is None
            torch.testing.assert_close(out["logits"], wanted)


class Recurrent(nn.Module):
    """Takes what it returned for the frame before; the first has none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, frame, past=None, scale=0.5):
        state = self.conv(frame)
        return (state, state) if past is None else (state - past, state * scale + past)


def test_optional_inputs_are_inputs_where_they_are_given():
    model = Recurrent().double().eval()
    past = model(FRAMES[0])[1].detach()
    delta = deltaconvert.convert(model, (FRAMES[0], past))
    assert delta.input_names == ["frame", "past"]
    for frame in FRAMES:
        with torch.no_grad():
            wanted = model(frame, past)
        out = delta(frame, past)
        torch.testing.assert_close(out, wanted)
        past = out[1]
