"""One canonical form for each operator; identities gone, refusals with their reason.

That every spelling becomes its operator is in ``tests/operators``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import RegistryError
from deltaconvert.operators import registry
from tests.passes.graphs import Model, assert_same_outputs, frames_like, names, normalised

IDENTITIES = {
    "nn.Identity": (lambda self, x: self.m(x), nn.Identity()),
    "nn.Dropout": (lambda self, x: self.m(x), nn.Dropout(0.5)),
    "nn.Dropout2d in place": (lambda self, x: self.m(x), nn.Dropout2d(0.5, inplace=True)),
    "F.dropout of self.training": (lambda self, x: F.dropout(x, 0.5, self.training), None),
    "F.dropout by name": (lambda self, x: F.dropout(x, training=False), None),
    "F.dropout of nothing": (lambda self, x: F.dropout(x, 0.0), None),
    "clone": (lambda self, x: x.clone(), None),
    "contiguous": (lambda self, x: x.contiguous(), None),
    "memory format": (lambda self, x: x.contiguous(memory_format=torch.channels_last), None),
    "detach": (lambda self, x: x.detach(), None),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_disappear(name):
    function, module = IDENTITIES[name]
    model = Model(lambda self, x: function(self, x + 1) * 2, m=module or nn.Identity())
    assert names(normalised(model).graph) == ["add", "mul"]
    assert_same_outputs(model, frames_like(1, 2, 4, 4))


def test_active_dropout_stays_and_is_reported():
    graph_module = normalised(Model(lambda self, x: F.dropout(x) + 1))
    (result,) = graph_module.meta["results"]
    assert names(graph_module.graph) == ["dropout", "add"]
    assert result.refused == {
        "dropout": "dropout that is active in eval mode: its result is random"}


REFUSALS = {
    "without running statistics": nn.BatchNorm2d(2, track_running_stats=False),
    "that also returns indices": nn.MaxPool2d(2, return_indices=True),
    "Unfold is not an operator": nn.Unfold(2),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_carries_its_reason(reason):
    model = Model(lambda self, x: self.m(x), m=REFUSALS[reason])
    graph_module = normalised(model)
    node = next(n for n in graph_module.graph.nodes if n.op == "call_module")
    assert reason in node.meta["reason"]
    frame = torch.randn(1, 2, 4, 4)
    with pytest.raises(deltaconvert.UnsupportedError, match=reason.split("=")[0]):
        deltaconvert.convert(model, frame, strict=True)


def test_unknown_nodes_run_the_original_on_the_values():
    for module in (nn.BatchNorm2d(2, track_running_stats=False), nn.Unfold(2),
                   nn.Conv1d(2, 3, 1), nn.Conv3d(2, 3, 1)):
        spread = {nn.Conv1d: lambda x: x.flatten(2), nn.Conv3d: lambda x: x[:, :, None]}.get(
            type(module), lambda x: x)
        model = Model(lambda self, x, spread=spread: self.m(spread(x)) * 2, m=module)
        delta = assert_same_outputs(model, frames_like(2, 2, 5, 5))
        assert "unknown" in {n.about.rule for n in delta.stream.program.nodes}


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_subclass_may_compute_something_else():
    model = Model(lambda self, x: self.conv(x), conv=Doubled(2, 3, 3))
    assert names(normalised(model).graph) == ["conv2d", "mul"]
    assert_same_outputs(model, frames_like(1, 2, 5, 5))


def test_hooks_still_run():
    conv = nn.Conv2d(2, 3, 1)
    conv.register_forward_hook(lambda module, inputs, output: output * 10)
    model = Model(lambda self, x: self.conv(x), conv=conv)
    (node,) = [n for n in normalised(model).graph.nodes if n.op == "call_module"]
    assert "hooks" in node.meta["reason"]
    assert_same_outputs(model, frames_like(1, 2, 4, 4))


def test_weights_keep_their_names_in_the_state_dict():
    model = Model(lambda self, x: self.block(x), block=nn.Sequential(nn.Conv2d(2, 2, 1)))
    graph = normalised(model).graph
    assert [n.target for n in graph.nodes if n.op == "get_attr"] == ["block.0.weight",
                                                                     "block.0.bias"]


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (1, 2), (3, 3)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_same_padding_puts_the_odd_pixel_behind(kernel, dilation):
    conv = nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation)
    padded = any(d % 2 for d in (dilation * (k - 1) for k in kernel))
    model = Model(lambda self, x: self.conv(x), conv=conv)
    assert names(normalised(model).graph) == ["pad_zero"] * padded + ["conv2d"]
    assert_same_outputs(model, frames_like(1, 2, 9, 8))


def test_a_second_registration_is_refused():
    with pytest.raises(RegistryError, match="registered already"):
        @registry.operator()
        def relu(x):
            return x
    with pytest.raises(RegistryError, match="would silently replace it"):
        registry.spelled_module(nn.ReLU)(lambda module, attribute, input: input)
    relu = registry.named("relu")
    assert registry.find(relu.function) is relu
    assert registry.module_spelling(nn.ReLU) is not None


def test_memory_that_nobody_has_written_is_the_same_each_time(tmp_path):
    def halves(self, x):
        y, z = torch.empty_like(x), x.new_empty(x.shape)
        y[..., 0], z[:] = x[..., 1], self.conv(x)
        y[..., 1:] = x[..., 1:]
        return y + z
    model = Model(halves, conv=nn.Conv2d(4, 4, 3, padding=1))
    torch.full((1 << 16,), 7.0)  # what the next memory holds, if it is not cleared
    delta = assert_same_outputs(model, frames_like(1, 4, 5, 6))
    assert not [n for n in delta.graph.nodes if "empty" in str(n.target)]
    deltaconvert.save(delta, tmp_path / "m.delta")
