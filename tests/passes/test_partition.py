"""Local, global or unknown, and why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from tests.passes.graphs import Model, TwoInputs, assert_same_outputs, frames_like, program_of


def rule_of(model: nn.Module, *frames: torch.Tensor) -> tuple[str, str]:
    """The last node's rule and reason."""
    delta = deltaconvert.convert(model, frames, backend="reference")
    about = delta.program(delta.signature(frames), frames).nodes[-1].about
    return about.rule, about.reason


x = torch.randn(2, 3, 5, 6)
CASES = {
    "a convolution": (Model(lambda self, x: self.m(x), m=nn.Conv2d(3, 2, 3)), "local", ""),
    "a gate on a map": (Model(lambda self, x: x * x.mean((2, 3), True)), "local", ""),
    "global pooling": (Model(lambda self, x: F.adaptive_avg_pool2d(x, 1)), "global",
                       "reads the whole map"),
    "pooling to some pixels": (Model(lambda self, x: F.adaptive_avg_pool2d(x, 2)), "local", ""),
    "mean over space": (Model(lambda self, x: x.mean((2, 3), True)), "global",
                        "reads the whole map"),
    "mean over channels": (Model(lambda self, x: x.mean(1, keepdim=True)), "local", ""),
    "softmax over rows": (Model(lambda self, x: x.softmax(2)), "global", "mixes pixels"),
    "cat over rows": (Model(lambda self, x: torch.cat([x, x * 2], 2)), "global", "moves pixels"),
    "a vector": (Model(lambda self, x: F.relu(x.flatten(1))), "global", "is not a map of 2 lanes"),
    "more lanes": (Model(lambda self, x: x.view(6, 1, 6, 5) + 1), "global",
                   "[6, 1, 6, 5] is not a map of 2 lanes"),
    "a classifier": (Model(lambda self, x: self.m(x.flatten(1)), m=nn.Linear(90, 2)), "global", ""),
    "a norm over pixels": (Model(lambda self, x: self.m(x), m=nn.GroupNorm(1, 3)), "global",
                           "its statistics are of whole maps"),
    "a method": (Model(lambda self, x: x.cumsum(2)), "unknown", "cumsum is not an operator"),
    "a tuple": (Model(lambda self, x: torch.max(x, 1)), "unknown",
                "an extreme together with its indices"),
    "parts": (Model(lambda self, x: x.chunk(3, 1)), "global", ""),
    "one of the parts": (Model(lambda self, x: x.chunk(3, 1)[0]), "local", ""),
    "a view": (Model(lambda self, x: x.transpose(1, 2)), "global", ""),
}


@pytest.mark.parametrize("what", CASES)
def test_rule_and_reason(what):
    model, rule, reason = CASES[what]
    got, said = rule_of(model, x)
    assert got == rule
    assert reason in said
    assert (said == "") == (reason == "")


def test_a_weight_from_a_frame_runs_whole():
    model = TwoInputs(lambda self, x, y: F.conv2d(x, y))
    assert rule_of(model, x, torch.randn(2, 3, 2, 2)) == ("global",
                                                          "its weight depends on the frame")


def test_a_map_of_another_batch_is_no_map():
    model = TwoInputs(lambda self, x, y: x + y)
    assert rule_of(model, x, torch.randn(1, 3, 5, 6))[0] == "global"


def test_the_footprints_are_one_an_edge():
    model = TwoInputs(lambda self, x, y: torch.cat([x, y, x], 1))
    delta = deltaconvert.convert(model, [x, x])
    nodes = delta.program(delta.signature([x, x]), [x, x]).nodes
    assert [len(n.about.footprints) for n in nodes] == [0, 0, 2]


def test_what_is_done_to_the_scores_of_an_attention_runs_whole_with_it():
    def attention(self, x, returned=False):
        n, c, h, w = x.shape
        q, k, v = (conv(x).view(n, 2, c // 2, h * w) for conv in (self.q, self.k, self.v))
        scores = q.transpose(2, 3) @ k * 0.5 + self.bias
        y = (v @ scores.softmax(-1).transpose(2, 3)).reshape(n, c, h, w)
        return (y, scores) if returned else y
    parts = {name: nn.Conv2d(4, 4, 1) for name in "qkv"}
    frames = [f[:, :, :12, :12] for f in frames_like(1, 4, 12, 12)]
    for is_returned in (False, True):
        model = Model(lambda self, x, all=is_returned: attention(self, x, all),
                      bias=torch.randn(144), **parts)
        delta = assert_same_outputs(model, frames)
        names = {n.about.operator.name for n in program_of(delta).nodes
                   if n.about.rule == "local"}
        assert names == ({"conv2d", "mul", "add"} if is_returned else {"conv2d"})
