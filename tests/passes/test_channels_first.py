"""What is computed on N x H x W x C is computed on N x C x H x W."""

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
    program_of,
    specialised,
)

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def convnext(self, x):
    y = self.norm(self.spread(x).permute(LAST))
    y = self.scale * self.two(F.gelu(self.one(y)))
    return x + y.permute(FIRST)


def response(self, x):
    """ConvNeXt V2's global response norm."""
    y = x.permute(LAST)
    size = y.norm(p=2, dim=(1, 2), keepdim=True)
    size = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
    return (y + torch.addcmul(self.bias, self.weight, y * size)).permute(FIRST)


def merged(self, x):
    """Swin's patch merging."""
    y = x.movedim(1, -1)
    y = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
    return self.reduce(self.norm(y)).movedim(-1, 1)


def halves(self, x):
    a, b = F.pad(x.permute(LAST), (0, 0, 1, 0, 0, 2)).chunk(2, dim=3)
    return (a * b.softmax(-1)).roll((1, 1), (1, 2)).permute(FIRST)


PARTS = {"spread": nn.Conv2d(4, 4, 3, padding=1, groups=4), "norm": nn.LayerNorm(4),
         "one": nn.Linear(4, 8), "two": nn.Linear(8, 4), "scale": torch.rand(4)}
# The function, its parts, and what it is behind `infer` and behind this pass.
CASES = {
    "ConvNeXt": (convnext, PARTS,
                 ["conv2d", "permute", "layer_norm", "linear", "gelu", "linear", "mul", "permute",
                  "add"],
                 ["conv2d", "layer_norm2d", "conv2d", "gelu", "conv2d", "mul", "add"]),
    "a response norm": (response, {"bias": torch.rand(4), "weight": torch.rand(4)},
                        ["permute", "vector_norm", "mean", "add", "div", "mul", "addcmul", "add",
                         "permute"],
                        ["vector_norm", "mean", "add", "div", "mul", "addcmul", "add"]),
    "patches merged": (merged, {"norm": nn.LayerNorm(16), "reduce": nn.Linear(16, 6, bias=False)},
                       [*["select", "permute"] * 4, "cat", "layer_norm", "linear", "permute"],
                       [*["select"] * 4, "cat", "layer_norm2d", "conv2d"]),
    "halves": (halves, {}, ["permute", "pad", "select", "select", "softmax", "mul", "select",
                            "permute"],
               ["pad_zero", "select", "select", "softmax", "mul", "select"]),
}


def normalised(self, x):
    return self.norm((x - self.mean) / 2).permute(FIRST)


@pytest.mark.parametrize("function, parts, expected", [
    (lambda self, x: self.spread(x.permute(FIRST)), PARTS, ["x", "conv2d"]),
    (lambda self, x: self.one(x.relu()), PARTS, ["x", "relu", "conv2d", "permute"]),
    (normalised, {"norm": nn.LayerNorm(4), "mean": torch.rand(4)},
     ["x", "sub", "div", "layer_norm2d"]),
    (lambda self, x: (x.flatten(1), self.spread(x.permute(FIRST))), PARTS,
     ["x", "permute_to_flatten", "conv2d"])],
    ids=["a convolution", "a matrix product", "a norm", "others read it"])
def test_a_frame_with_its_channels_last_comes_channels_first(function, parts, expected):
    model = Model(function, **parts)
    delta = assert_same_outputs(model, frames_like(2, 6, 8, 4))
    nodes = program_of(delta).nodes
    door, *others = nodes
    assert sorted(["x", *(n.about.function_name for n in others)]) == sorted(expected)
    assert door.about.output.shape == (2, 4, 6, 8)


@pytest.mark.parametrize("function", [
    lambda self, x: self.spread(x), lambda self, x: self.one(x.permute(LAST)),
    lambda self, x: x.relu().permute(LAST)])
def test_a_frame_with_its_channels_first_is_left(function):
    model = Model(function, **PARTS)
    delta = assert_same_outputs(model, frames_like(2, 4, 6, 8))
    assert program_of(delta).nodes[0].about.output.shape == (2, 4, 6, 8)
    assert not program_of(delta).nodes[0].about.params


def curve(self, x):
    for _ in range(30):
        x = x + self.strength * (x * x - x)
    return x


def test_many_ways_through_a_graph_are_gone_once():
    """As of a curve that is applied again and again (Zero-DCE): three to the power of 30."""
    assert_same_outputs(Model(curve, strength=torch.full((4, 1, 1), 0.01)), frames_like(2, 4, 6, 8))


@pytest.mark.parametrize("what", CASES)
def test_permutations_go_and_all_is_local(what):
    function, parts, before, after = CASES[what]
    model = Model(function, **parts)
    stages = specialised(model, torch.randn(2, 4, 6, 8))

    def calls(stage: str) -> list[str]:
        return [name for name in stages[stage] if name not in ("as_filter", "constant_first")]
    assert sorted(calls("infer")) == sorted(before)
    assert sorted(calls("channels_first")) == sorted(after)
    delta = assert_same_outputs(model, frames_like(2, 4, 6, 8))
    rules = {n.about.name: n.about.rule for n in program_of(delta).nodes}
    whole = {"global"} if what == "a response norm" else set()
    assert set(rules.values()) == {"sparsify", "local"} | whole
    last = delta.stream.last
    changed = [work.pixels_out for name, work in last.items() if rules[name] == "local"]
    assert what == "a response norm" or max(changed) < 48


def test_a_matrix_product_takes_its_activation_and_keeps_its_name():
    model = Model(convnext, **PARTS)
    delta = assert_same_outputs(model, frames_like(1, 4, 6, 8))
    nodes = {n.about.path: n.about for n in program_of(delta).nodes}
    assert nodes["one"].name == "one"
    assert nodes["one"].operator.name == "conv2d"
    assert nodes["one"].params["activation"] == ("gelu", "none")
    assert nodes["one"].multiply_adds == 32


def test_a_map_that_comes_as_channels_last_is_permuted_once():
    """The sum of a map that is known to be so and one that is not."""
    model = TwoInputs(lambda self, x, y: self.m(x.permute(LAST) + y.roll(1, 0)).permute(FIRST),
                      m=nn.Linear(3, 2))
    stages = specialised(model, torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5, 3))
    assert [n for n in stages["channels_first"] if n != "as_filter"] == ["roll", "permute", "add",
                                                                        "conv2d"]
    assert_same_outputs(model, frames_like(2, 3, 4, 5), frames_like(2, 4, 5, 3))


KEPT = {
    "read as channels last, too": lambda self, x: (lambda y: (y.permute(FIRST), y))(
        F.relu(x.permute(LAST))),
    "dropped dimensions": lambda self, x: x.permute(LAST).mean((1, 2)),
    "a norm over rows and channels": lambda self, x: F.layer_norm(x.permute(LAST), (6, 4)),
    "other orders": lambda self, x: F.relu(x.permute(0, 3, 2, 1)),
    "tokens": lambda self, x: self.norm(x.flatten(2).transpose(1, 2)),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_is_no_map_stays_as_it_is(what):
    model = Model(KEPT[what], norm=nn.LayerNorm(4))
    stages = specialised(model, torch.randn(2, 4, 5, 6))
    assert {"permute", "transpose"} & set(stages["channels_first"])
    assert_same_outputs(model, frames_like(2, 4, 5, 6))


def test_a_constant_of_places_or_a_number_broadcasts_as_before():
    for constant in (torch.randn(5, 6, 1), torch.randn(4), torch.tensor(2.0), torch.randn(6, 4)):
        model = Model(lambda self, x: (x.permute(LAST) * self.c).permute(FIRST), c=constant)
        stages = specialised(model, torch.randn(2, 4, 5, 6))
        assert "permute" not in stages["channels_first"]
        assert_same_outputs(model, frames_like(2, 4, 5, 6))
