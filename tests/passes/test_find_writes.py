"""Functions that are kept whole and write into their arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.errors import UnsupportedError
from tests.passes.graphs import Model, frames_like, program_of

torch.fx.wrap("shifted_in_place")
torch.fx.wrap("shifted_silently")


def shifted_in_place(x, amount):
    if x.numel():
        x[:, 1:] += amount
    return x


def shifted_silently(x, amount):
    if x.numel():
        x[:, 1:] += amount
    return x.sum()


def converted(function):
    model = Model(function, conv=nn.Conv2d(3, 4, 3)).double()
    return model, deltaconvert.convert(model, threshold=0.05)


def test_the_value_that_is_kept_is_not_written_into():
    model, delta = converted(lambda self, x: shifted_in_place(self.conv(x), 1.0) * 2)
    frames = frames_like(1, 3, 8, 8)
    report = deltaconvert.validate(model, delta, frames, law_every=1)
    assert not report.breaches, report.breaches[0]
    exact = deltaconvert.convert(model)
    for frame in frames:
        torch.testing.assert_close(exact(frame), model(frame))
    assert [n.about.function.__name__ for n in program_of(exact).nodes
            if n.about.rule == "unknown"] == ["shifted_in_place"]


def test_later_readers_see_what_was_written():
    def forward(self, x):
        y = self.conv(x)
        shifted = shifted_in_place(y, 1.0)
        return shifted + y, torch.relu(y)
    model, _ = converted(forward)
    delta = deltaconvert.convert(model)
    for frame in frames_like(1, 3, 8, 8):
        for found, wanted in zip(delta(frame), model(frame), strict=True):
            torch.testing.assert_close(found, wanted)


def test_what_is_written_by_a_function_that_returns_nothing_of_use_is_not_lost():
    def forward(self, x):
        y = self.conv(x)
        shifted_silently(y, 1.0)
        shifted_silently(torch.relu(x), 1.0)  # read by nobody
        return y * 2
    model, _ = converted(forward)
    delta = deltaconvert.convert(model)
    for frame in frames_like(1, 3, 8, 8):
        torch.testing.assert_close(delta(frame), model(frame))
    assert [n.about.name for n in program_of(delta).nodes] == [
        "x", "conv", "shifted_silently", "mul"]


def silently(self, x):
    y = self.conv(x)
    return shifted_silently(y, 1.0) + y


def through_a_view(self, x):
    y = self.conv(x)
    return shifted_in_place(y[:, :2], 1.0).sum() + y


@pytest.mark.parametrize("function, said", [
    (silently, r"shifted_silently writes into its argument 'conv', which is read behind it \(.*"
               r"Let it return what it has written and use that"),
    (through_a_view, r"writes into its argument '\w+', which shares memory with 'conv', which is "
                     r"read behind it")])
def test_what_cannot_be_followed_is_refused(function, said):
    _, delta = converted(function)
    with pytest.raises(UnsupportedError, match=said):
        delta(torch.randn(1, 3, 8, 8).double())
