"""Convolution, add and activation: three calls before, one after, outputs close."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.passes.graphs import (
    Model,
    TwoInputs,
    assert_same_outputs,
    frames_like,
    specialised,
    trained_norm,
)

conv = nn.Conv2d(2, 2, 3, padding=1)
FUSED = {
    "conv, relu": (lambda self, x: F.relu(self.conv(x)), ["conv2d"]),
    "conv, add": (lambda self, x: self.conv(x) + self.pool(x), ["max_pool2d", "conv2d"]),
    "conv, add, leaky": (lambda self, x: F.leaky_relu(self.pool(x) + self.conv(x), 0.3),
                         ["max_pool2d", "conv2d"]),
    "transposed, add, silu": (lambda self, x: F.silu(self.up(x) + self.pool(x)),
                              ["max_pool2d", "conv_transpose2d"]),
    "norm, relu6": (lambda self, x: F.relu6(self.norm(x)), ["batch_norm"]),
    "add, sigmoid": (lambda self, x: torch.sigmoid(x + self.pool(x)), ["max_pool2d", "add"]),
    "sub, hardswish": (lambda self, x: F.hardswish(1 - x), ["sub"]),
    "conv, one trained slope": (lambda self, x: self.slope(self.conv(x)), ["conv2d"]),
    "two convs": (lambda self, x: F.relu(self.conv(x) + self.up(x)),
                  ["conv_transpose2d", "conv2d"]),
    "conv, a slope for each channel": (lambda self, x: self.slopes(self.conv(x)), ["conv2d"]),
    "only the first activation": (lambda self, x: F.relu(F.silu(self.conv(x))), ["conv2d", "relu"]),
    "an add behind the activation": (lambda self, x: F.relu(self.conv(x)) + self.pool(x),
                                     ["conv2d", "max_pool2d", "add"]),
}


def whole(function) -> Model:
    return Model(function, conv=conv, up=nn.ConvTranspose2d(2, 2, 3, padding=1),
                 pool=nn.MaxPool2d(3, 1, 1), norm=trained_norm(2), slope=nn.PReLU(),
                 slopes=nn.PReLU(2))


@pytest.mark.parametrize("what", FUSED)
def test_fuses(what):
    function, after = FUSED[what]
    stages = specialised(whole(function), torch.randn(1, 2, 5, 6))
    assert len(stages["infer"]) > len(after) or "behind" in what or "no" in what.split()
    assert sorted(stages["fuse"]) == sorted(after)
    assert_same_outputs(whole(function), frames_like(2, 2, 5, 6))


REFUSED = {
    "a second reader": (lambda self, x: (lambda c: F.relu(c) + c)(self.conv(x)), None),
    "an output": (lambda self, x: (lambda c: (F.relu(c), c))(self.conv(x)), None),
    "scaled": (lambda self, x: torch.add(self.conv(x), x, alpha=2), "the add behind it is scaled"),
    "a number": (lambda self, x: self.conv(x) + 1, "is not another map"),
    "a constant": (lambda self, x: self.conv(x) + self.norm.weight.view(1, 2, 1, 1),
                   "is not another map"),
    "a gate": (lambda self, x: self.conv(x) + x.mean((2, 3), keepdim=True), "is broadcast"),
    "itself": (lambda self, x: (lambda c: c + c)(self.conv(x)), "is not another map"),
    "its own input": (lambda self, x: self.conv(x) + x, "its own input"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what):
    function, reason = REFUSED[what]
    stages = specialised(whole(function), torch.randn(1, 2, 5, 6))
    refused = stages["results"]["fuse"].refused
    assert len(stages["fuse"]) == len(stages["infer"])
    assert (reason is None and not refused) or reason in refused["conv"]
    assert_same_outputs(whole(function), frames_like(2, 2, 5, 6))


def test_a_convolution_of_a_constant_takes_no_residual():
    """Its footprint would be that of the map that is added."""
    model = Model(lambda self, x: self.conv(self.grid) + x, grid=torch.randn(1, 2, 6, 6),
                  conv=nn.Conv2d(2, 2, 2, stride=2, padding=2, dilation=1))
    assert_same_outputs(model, frames_like(1, 2, 5, 5))


def test_the_fused_node_is_the_first_ones_call():
    stages = specialised(whole(FUSED["conv, relu"][0]), torch.randn(1, 2, 5, 6))
    (node,) = [n for n in stages["graph"].nodes if n.op == "call_function"]
    assert (node.name, node.meta["path"]) == ("conv", "conv")
    assert node.kwargs["activation"] == ("relu",)


def test_the_slope_is_kept():
    function, _ = FUSED["conv, add, leaky"]
    stages = specialised(whole(function), torch.randn(1, 2, 5, 6))
    (node,) = [n for n in stages["graph"].nodes if n.kwargs.get("activation")]
    assert node.kwargs["activation"] == ("leaky_relu", 0.3)


def test_a_residual_from_another_input():
    model = TwoInputs(lambda self, x, y: F.relu(self.conv(x) + y), conv=conv)
    frame = torch.randn(1, 2, 5, 6)
    assert specialised(model, frame, frame)["fuse"] == ["conv2d"]
    assert_same_outputs(model, frames_like(2, 2, 5, 6), frames_like(2, 2, 5, 6, seed=5))


def test_slopes_stay_a_node_where_the_backend_takes_none():
    model = whole(FUSED["conv, a slope for each channel"][0])
    graph_module = specialised(model, torch.randn(1, 2, 5, 6), unfused=frozenset({"prelu"}))
    assert graph_module["fuse"] == ["conv2d", "prelu"]
