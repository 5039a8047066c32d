"""Tokens and windows of a map are computed on the map, but for attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from tests.passes.graphs import (
    Model,
    assert_same_outputs,
    frames_like,
    program_of,
    specialised,
)


def attention(self, q, kv):
    return (q @ kv.transpose(1, 2)).softmax(-1) @ kv


def tokens(self, x):
    """A block of a pyramid transformer: tokens, attention, a residual of tokens, a map again."""
    n, c, h, w = x.shape
    y = x.flatten(2).transpose(1, 2)
    y = y + self.project(attention(self, self.query(self.norm(y)), y))
    y = y + self.two(F.gelu(self.one(self.norm(y))))
    return y.transpose(1, 2).reshape(n, c, h, w)


def windows(self, x):
    """Swin's windows, written out."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1)
    y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    y = self.project(attention(self, self.query(y), y))
    y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return self.norm(y).permute(0, 3, 1, 2) + x


def of_one_order(self, x):
    """Two inputs that went through the same moves; a constant a token, another a channel."""
    a, b = (v.flatten(2).transpose(1, 2) for v in (x, self.spread(x)))
    y = (a * self.scale + b) * self.place
    return y.transpose(1, 2).reshape(x.shape)


PARTS = {"query": nn.Linear(4, 4), "project": nn.Linear(4, 4), "norm": nn.LayerNorm(4),
         "one": nn.Linear(4, 8), "two": nn.Linear(8, 4), "scale": torch.rand(4),
         "spread": nn.Conv2d(4, 4, 3, padding=1), "place": torch.rand(1, 24, 4)}


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("function", [tokens, windows, of_one_order])
def test_it_computes_the_same(function, lanes):
    assert_same_outputs(Model(function, **PARTS), frames_like(lanes, 4, 4, 6))


@pytest.mark.parametrize("function, before, after", [
    (tokens, 4, 0), (windows, 2, 0)])
def test_matrix_products_become_convolutions(function, before, after):
    model = Model(function, **PARTS)
    stages = specialised(model, torch.randn(2, 4, 4, 6))
    assert stages["infer"].count("linear") == before
    assert stages["channels_first"].count("linear") == after
    assert stages["channels_first"].count("conv2d") == before
    delta = assert_same_outputs(model, frames_like(2, 4, 4, 6))
    nodes = [n.about for n in program_of(delta).nodes]
    rules = {n.operator.name: n.rule for n in nodes if n.operator}
    assert rules["conv2d"] == rules["layer_norm2d"] == "local"
    joined = [call[0].__name__ for n in nodes if n.rule == "global"
              for call in getattr(n.function, "calls", ())]
    assert joined.count("matmul") == 2


def test_the_law_holds_at_a_threshold():
    model = Model(tokens, **PARTS).double()
    delta = deltaconvert.convert(model, threshold=0.05)
    report = deltaconvert.validate(model, delta, frames_like(1, 4, 8, 8), law_every=1)
    assert not report.breaches, report.breaches[0]


def mixes_places(self, x):
    y = x.flatten(2)
    return self.places(y).reshape(x.shape)


def over_the_width(self, x):
    return self.heads(F.max_pool2d(x, (1, 3)).flatten(1, 2))


def other_channels(self, x):
    """The last dimension is another one: heads."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).reshape(n, h * w, 2, 2)
    return self.heads(y).reshape(n, h, w, c).permute(0, 3, 1, 2)


def a_class_token(self, x):
    y = torch.cat([self.token.expand(x.shape[0], 1, 4), x.flatten(2).transpose(1, 2)], 1)
    return self.query(y)


@pytest.mark.parametrize("function", [
    mixes_places, over_the_width, other_channels, a_class_token])
def test_what_is_no_arrangement_of_a_map_stays(function):
    parts = PARTS | {"places": nn.Linear(24, 24), "heads": nn.Linear(2, 2),
                     "token": torch.rand(1, 1, 4)}
    model = Model(function, **parts)
    assert specialised(model, torch.randn(2, 4, 4, 6))["rejoin_maps"].count("linear") == 1
    assert not specialised(model, torch.randn(2, 4, 4, 6))["results"]["rejoin_maps"].changed
    assert_same_outputs(model, frames_like(2, 4, 4, 6))
