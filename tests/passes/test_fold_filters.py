"""Weights in the backend's layout, and who runs what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.backends.reference import ReferenceBackend
from deltaconvert.config import Config
from deltaconvert.passes.fold_filters import delta_nodes, fold_filters
from tests.passes.graphs import Model, program_of


class Picky(ReferenceBackend):
    """Runs convolutions only, and keeps their transposed weights."""

    name = "picky"

    def supports(self, node):
        named = node.about.operator and node.about.operator.name
        return None if named == "conv2d" else f"{named} is beyond it"

    def fold_filters(self, node):
        return node.about.args[1].permute(2, 3, 1, 0).contiguous()


def test_what_a_backend_cannot_do_runs_by_the_other_with_the_reason():
    model = nn.Sequential(nn.Conv2d(2, 3, (3, 2)), nn.MaxPool2d(2))
    delta = deltaconvert.convert(model, torch.randn(1, 2, 6, 6), backend="reference")
    lowered = delta.program(delta.signature([torch.randn(1, 2, 6, 6)]), []).graph_module
    weights = fold_filters(lowered, Picky(Config()), ReferenceBackend(Config()))
    nodes = delta_nodes(lowered)
    assert [(n.backend, n.fallback_reason) for n in nodes] == [
        ("reference", "None is beyond it"), ("picky", ""), ("reference", "max_pool2d is beyond it")]
    assert weights["_0"].shape == (3, 2, 2, 3)
    assert weights["_1"] is None


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_derived_weights_follow_the_originals(backend):
    model = Model(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(2, 3, 3),
                  norm=nn.BatchNorm2d(3)).eval()
    other = Model(model.function, conv=nn.Conv2d(2, 3, 3), norm=nn.BatchNorm2d(3)).eval()
    delta = deltaconvert.convert(model, backend=backend)
    frame = torch.randn(1, 2, 6, 6)
    delta(frame)
    before = program_of(delta)
    delta.load_state_dict(other.state_dict())
    torch.testing.assert_close(delta(frame), other(frame))
    assert program_of(delta) is not before


def test_streams_share_derived_weights():
    delta = deltaconvert.convert(nn.Conv2d(2, 3, 3), backend="cpu")
    one, two = delta.new_stream(), delta.new_stream()
    one(torch.randn(1, 2, 6, 6))
    two(torch.randn(1, 2, 6, 6))
    assert one.program is two.program
