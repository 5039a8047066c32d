"""Code that branches on shapes is followed where frames are given."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.passes.trace import trace


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 0.5))

    def forward(self, x):
        assert x.shape[-1] % 2 == 0
        x = self.conv(x) * self.scale
        if len(x.shape) == 4 and x.ndim == x.dim():
            x = F.relu(x, inplace=True)
        x = F.interpolate(x, size=(math.ceil(x.size(2) * 1.5), int(x.shape[3] * 1.5)))
        for channel in range(x.size(1)):
            x[:, channel] += channel
        first, *_ = x.chunk(2, 1)
        ones = torch.ones(x.shape[0], 1, *x.shape[2:], device=x.device)
        return first, x.view(*x.shape[:2], -1).mean(-1), x + ones


class NumberBranching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_without_frames_it_is_refused_with_the_line_and_the_way_out():
    with pytest.raises(deltaconvert.TraceError, match=r"assert x\.shape") as caught:
        deltaconvert.convert(Branching())
    assert "give convert its example_inputs" in str(caught.value)


def test_with_frames_it_agrees_and_takes_no_other_shapes():
    model = Branching().eval()
    frame = torch.randn(2, 3, 8, 10)
    delta = deltaconvert.convert(model, frame)
    for _ in range(3):
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-6)
        frame = frame.clone()
        frame[1, :, 3:5, 4:6] += 1
    with pytest.raises(deltaconvert.FrameError, match="branches on shapes"):
        delta(torch.zeros(1, 3, 8, 8))


def test_a_model_that_needs_no_shapes_is_traced_without_them():
    assert trace(nn.Conv2d(3, 2, 1), [torch.zeros(1, 3, 4, 4)]).meta["traced_for"] is None


def test_a_branch_on_numbers_stays_refused():
    with pytest.raises(deltaconvert.TraceError, match=r"if x.sum\(\) > 0"):
        deltaconvert.convert(NumberBranching(), torch.ones(1, 1, 2, 2))
