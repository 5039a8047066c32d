"""Weights that are computed from other parameters are constants of the graph."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import deltaconvert
from deltaconvert import load, save
from tests.passes.graphs import Model, assert_same_outputs, frames_like, specialised, trained_norm


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def by_hooks(function, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(module)


def parametrized(module):
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


WAYS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "another": parametrized,
    "weight norm by hooks": lambda m: by_hooks(nn.utils.weight_norm, m),
    "spectral norm by hooks": lambda m: by_hooks(nn.utils.spectral_norm, m),
}


def model_of(way: str) -> nn.Module:
    torch.manual_seed(0)
    return Model(lambda self, x: torch.relu(self.norm(self.conv(x))),
                 conv=WAYS[way](nn.Conv2d(2, 3, 3)), norm=trained_norm(3)).eval()


@pytest.mark.parametrize("way", WAYS)
def test_the_convolution_is_one_as_any_other(way):
    stages = specialised(model_of(way), torch.randn(1, 2, 6, 6))
    assert stages["normalize"][-3:] == ["conv2d", "batch_norm", "relu"]
    assert stages["fuse"][-1] == "conv2d"
    assert not {"batch_norm", "relu"} & set(stages["fuse"])
    assert stages["results"]["partition"].changed == ["conv: local"]


@pytest.mark.parametrize("way", [w for w in WAYS if "hooks" not in w])
def test_it_computes_what_the_dense_model_does(way):
    assert_same_outputs(model_of(way), frames_like(1, 2, 6, 6))


@pytest.mark.parametrize("way", WAYS)
def test_the_state_dict_and_new_weights(way):
    model = model_of(way)
    names = list(model.state_dict())
    delta = deltaconvert.convert(model, backend="reference")
    frame = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(delta(frame), model(frame))
    assert list(delta.state_dict()) == names == list(model.state_dict())
    other = model_of(way)
    for parameter in other.conv.parameters():
        parameter.data = parameter.data + 0.3
    delta.load_state_dict(other.state_dict())
    torch.testing.assert_close(delta(frame), other(frame))


@pytest.mark.parametrize("way", ["weight norm", "spectral norm", "weight norm by hooks",
                                 "spectral norm by hooks"])
def test_a_file_holds_the_parameters_and_how_the_weight_follows(way, tmp_path):
    model = model_of(way)
    save(deltaconvert.convert(model, backend="reference"), tmp_path / "m.delta")
    frame = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(load(tmp_path / "m.delta")(frame), model(frame))


def test_other_hooks_are_left_to_the_module():
    conv = by_hooks(nn.utils.weight_norm, nn.Conv2d(2, 3, 1))
    conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model = Model(lambda self, x: self.conv(x), conv=conv)
    (node,) = deltaconvert.convert(model, torch.randn(1, 2, 4, 4)).program(
        (0,), [torch.randn(1, 2, 4, 4)]).nodes[1:]
    assert node.about.reason == "Conv2d has forward hooks, which only calling it runs"
