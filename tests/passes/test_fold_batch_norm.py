"""BatchNorm into the convolution before it: there before, gone after, outputs close."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from tests.passes.graphs import (
    Model,
    TwoInputs,
    assert_same_outputs,
    frames_like,
    names,
    normalised,
    specialised,
    trained_norm,
)

CONVOLUTIONS = {
    "bias": nn.Conv2d(4, 6, 3), "no bias": nn.Conv2d(4, 6, 3, bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2), "depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False),
    "transposed, groups": nn.ConvTranspose2d(4, 6, 2, groups=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_folds(kind, affine):
    conv = CONVOLUTIONS[kind]
    norm = trained_norm(conv.out_channels)
    if not affine:
        norm.weight = norm.bias = None
    model = Model(lambda self, x: self.norm(self.conv(x)), conv=conv, norm=norm)
    graph_module = normalised(model)
    assert "batch_norm" in names(graph_module.graph)
    result = fold_batch_norm(graph_module)
    assert "batch_norm" not in names(graph_module.graph)
    assert result.changed == ["norm: into conv"]
    assert_same_outputs(model, frames_like(2, 4, 6, 7))


def test_a_convolution_called_twice_is_folded_twice():
    model = Model(lambda self, x: self.one(self.conv(x)) - self.two(self.conv(x)),
                  conv=nn.Conv2d(2, 3, 3), one=trained_norm(3), two=trained_norm(3))
    stages = specialised(model, torch.randn(1, 2, 6, 6))
    assert len(stages["results"]["fold_batch_norm"].changed) == 2
    assert "batch_norm" not in stages["fold_batch_norm"]
    assert_same_outputs(model, frames_like(1, 2, 6, 6))


def test_one_norm_behind_two_convolutions():
    model = Model(lambda self, x: self.norm(self.a(x)) - self.norm(self.b(x)),
                  a=nn.Conv2d(2, 3, 3), b=nn.Conv2d(2, 3, 3), norm=trained_norm(3))
    assert "batch_norm" not in specialised(model, torch.randn(1, 2, 6, 6))["fold_batch_norm"]
    assert_same_outputs(model, frames_like(1, 2, 6, 6))


REFUSED = {
    "conv has other readers": Model(
        lambda self, x: (lambda c: self.norm(c) + c)(self.conv(x)), conv=nn.Conv2d(2, 3, 1),
        norm=trained_norm(3)),
    "an output is a reader": Model(
        lambda self, x: (lambda c: (self.norm(c), c))(self.conv(x)), conv=nn.Conv2d(2, 3, 1),
        norm=trained_norm(3)),
    "no convolution in front of it": Model(lambda self, x: self.norm(F.relu(x)),
                                           norm=trained_norm(2)),
    "the weights of conv2d depend on the frame": Model(
        lambda self, x: self.norm(F.conv2d(x, self.w * x.mean())), w=torch.randn(3, 2, 1, 1),
        norm=trained_norm(3)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses(reason):
    stages = specialised(REFUSED[reason], torch.randn(1, 2, 4, 4))
    (said,) = stages["results"]["fold_batch_norm"].refused.values()
    assert said == reason or reason == "an output is a reader"
    assert "batch_norm" in stages["fold_batch_norm"]
    assert_same_outputs(REFUSED[reason], frames_like(1, 2, 4, 4))


def test_a_shape_read_is_no_reader():
    def forward(self, x):
        c = self.conv(x)
        height = c.shape[2]
        return F.interpolate(self.norm(c), size=(height * 2, c.size(3)))
    model = Model(forward, conv=nn.Conv2d(2, 3, 3), norm=trained_norm(3))
    stages = specialised(model, torch.randn(1, 2, 6, 6))
    assert stages["infer"] == ["folded_weight", "folded_bias", "conv2d", "resize_nearest"]
    assert_same_outputs(model, frames_like(1, 2, 6, 6))


def test_the_state_dict_keeps_the_original_values():
    model = Model(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(2, 3, 1),
                  norm=trained_norm(3))
    delta = assert_same_outputs(model, frames_like(1, 2, 4, 4))
    for (name, mine), (other, theirs) in zip(delta.state_dict().items(),
                                             model.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=0, atol=0)


def test_weights_that_come_from_a_frame_are_left_alone():
    model = TwoInputs(lambda self, x, y: self.norm(F.conv2d(x, y)), norm=trained_norm(2))
    assert_same_outputs(model, frames_like(1, 2, 4, 4), [torch.randn(2, 2, 1, 1).double()] * 4)
