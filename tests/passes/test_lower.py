"""Delta nodes with their settings, and doors where frames come in and results go out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.config import NodeConfig
from deltaconvert.nodes import DensifyNode, SparsifyNode
from tests.passes.graphs import Model, TwoInputs, frames_like, program_of

FRAME = torch.randn(2, 2, 6, 6)


def converted(model: nn.Module, *frames: torch.Tensor, **config):
    delta = deltaconvert.convert(model, backend="reference", **config)
    out = delta(*(frames or (FRAME,)))
    return delta, out


def test_doors_stand_at_the_boundaries_once():
    delta, _ = converted(Model(lambda self, x: (self.conv(x), x, F.relu(x), x),
                               conv=nn.Conv2d(2, 2, 1)))
    modules = dict(program_of(delta).graph_module.named_children())
    assert [n for n, m in modules.items() if isinstance(m, SparsifyNode)] == ["x"]
    assert sorted(n for n, m in modules.items() if isinstance(m, DensifyNode)) == [
        "densify_conv", "densify_relu", "densify_x"]


def test_an_input_that_nobody_reads_has_no_state():
    delta, out = converted(TwoInputs(lambda self, x, y: y * 2), FRAME, FRAME + 1)
    assert [n.about.name for n in program_of(delta).nodes] == ["y", "mul"]
    assert torch.equal(out, (FRAME + 1) * 2)


def memory(value) -> set[int]:
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()}
    return set().union(*(memory(v) for v in value)) if isinstance(value, (list, tuple)) else set()


@pytest.mark.parametrize("function", [
    lambda self, x: (x, x), lambda self, x: (F.relu(x), x + 1, F.relu(x)),
    lambda self, x: x.chunk(2, 1), lambda self, x: (x[:, :1], x.flatten(1), x),
    lambda self, x: (torch.cat([x, x * 2], 1), x * 2), lambda self, x: x.max(1),
    lambda self, x: (self.w, x), lambda self, x: [torch.ones(1), x.unsqueeze(0), x.expand_as(x)],
], ids=range(8))
def test_outputs_share_memory_with_nothing(function):
    delta, first = converted(Model(function, w=torch.ones(3)))
    second = delta(FRAME)
    state = set()
    delta.observe(lambda node, edge: state.update(memory(edge.value)))
    third = delta(FRAME)
    outputs = [memory(o) for out in (first, second, third) for o in out]
    assert sum(map(len, outputs)) == len(set().union(*outputs)), "outputs share memory"
    others = state | memory(FRAME) | memory(list(delta.parameters()))
    assert not set().union(*outputs) & others


def test_writing_into_outputs_changes_no_later_output():
    delta, outputs = converted(Model(lambda self, x: (x, self.conv(x), self.w, torch.ones(2)),
                                     conv=nn.Conv2d(2, 2, 1), w=torch.ones(3)))
    kept = [o.clone() for o in outputs]
    for out in outputs:
        out.fill_(7)
    for got, expected in zip(delta(FRAME), kept, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("function", [
    lambda self, x: x.half() * 2, lambda self, x: x.to(torch.float64), lambda self, x: x.double(),
    lambda self, x: x.bfloat16().float() + 1, lambda self, x: x.type(torch.float16)])
def test_calls_named_like_a_modules_own_methods(function):
    _, out = converted(Model(function))
    assert torch.equal(out, function(None, FRAME))


@pytest.mark.parametrize("name", ["graph", "meta", "code", "training", "half", "state", "modules"])
def test_inputs_named_like_a_modules_own_attributes(name):
    namespace: dict = {}
    exec(f"def forward(self, {name}):\n    return {name} * 2", namespace)
    model = type("Named", (nn.Module,), namespace)()
    _, out = converted(model)
    assert torch.equal(out, FRAME * 2)


def test_what_only_moves_or_counts_is_never_held_back():
    model = Model(lambda self, x: (torch.cat([self.conv(x)[:, :1], x], 1), x.argmax(1),
                                   F.interpolate(x, scale_factor=2), F.pad(x, (1, 1, 1, 1))),
                  conv=nn.Conv2d(2, 2, 1))
    delta, _ = converted(model, nodes={"*": 0.5}, input_threshold=0.25)
    thresholds = {n.about.name: n.about.threshold for n in program_of(delta).nodes}
    assert thresholds.pop("x") == 0.25
    assert thresholds.pop("conv") == 0.5
    assert len(thresholds) == 5
    assert set(thresholds.values()) == {0.0}


def test_nodes_without_multiply_adds_behind_them_are_exact_by_default():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)
            self.last, self.fc = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.conv(x)
            x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
            return self.fc(torch.relu(self.last(x)).mean((2, 3)))

    delta, _ = converted(Gated(), threshold=0.5)
    thresholds = {n.about.name: n.about.threshold for n in program_of(delta).nodes}
    exact = [name for name, threshold in thresholds.items() if threshold == 0]
    assert exact == ["x", "last", "mean_1", "fc"]
    assert {thresholds[name] for name in ("conv", "mean", "gate", "mul")} == {0.5}


def test_nodes_have_settings_of_their_own():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(1)))
    delta, _ = converted(model, threshold=0.1, nodes={
        "1.*": NodeConfig(threshold=0.3, norm="rms"), "_1_1": 0.2})
    assert [(n.about.path, n.about.threshold,
             n.about.norm) for n in program_of(delta).nodes[1:]] == [
        ("0", 0.1, "max"), ("1.0", 0.3, "rms"), ("1.1", 0.2, "rms")]


def test_a_node_knows_where_it_comes_from():
    delta, _ = converted(Model(lambda self, x: self.conv(x).relu(), conv=nn.Conv2d(2, 2, 1)))
    about = program_of(delta).nodes[1].about
    assert (about.name, about.path) == ("conv", "conv")
    assert about.source.startswith(__file__)
    assert "self.conv(x).relu()" in about.source


def test_the_lowered_graph_can_be_read():
    delta, _ = converted(Model(lambda self, x: self.conv(x), conv=nn.Conv2d(2, 2, 1)))
    code = program_of(delta).graph_module.code
    assert "x = self.x(state, x_frame)" in code
    assert "conv = self.conv(state, x)" in code
    assert "self.densify_conv(state, conv)" in code


@torch.fx.wrap
def viewed(x):
    return x.view(x.shape[0], -1)[:, ::7].cumsum(1)


@torch.fx.wrap
def windows(x):
    return x.as_strided((2, 4, 3), (4 * 9 * 10, 9 * 10, 1), 5)


class Flattened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)[:, 3:]


LAID_OUT = {
    "a view of a map": lambda self, x: viewed(self.conv(x)),
    "strides of a map": lambda self, x: windows(self.conv(x)),
    "a method": lambda self, x: self.conv(x).as_strided((2, 4, 3), (360, 90, 1), 5),
    "in a concatenation": lambda self, x: [viewed(y := self.conv(x)), torch.cat([y, F.relu(y)], 1)],
    "channels of a map": lambda self, x: viewed(self.conv(x)[:, 1:3]),
    "behind a norm over channels": lambda self, x: viewed(F.layer_norm(
        self.conv(x).permute(0, 2, 3, 1), (4,))),
    "of a tuple": lambda self, x: (lambda v: viewed(v[0]) + viewed(v[1]))(self.conv(x).chunk(2, 1)),
    "as a keyword": lambda self, x: viewed(x=self.conv(x)),
    "broadcast": lambda self, x: windows(self.conv(x)[:, :1].expand(-1, 4, -1, -1) * 1),
    "TorchScript": lambda self, x: self.script(self.conv(x)),
    "joined": lambda self, x: viewed(self.conv(x).cumsum(0)).cumsum(0),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("what", LAID_OUT)
def test_what_is_not_known_gets_tensors_as_they_lie_in_the_model(what, backend):
    """Maps are kept with their channels last, and other code may go by that."""
    torch.manual_seed(0)
    dense = Model(LAID_OUT[what], conv=nn.Conv2d(4, 4, 3, padding=1),
                  script=torch.jit.script(Flattened()))
    delta = deltaconvert.convert(dense, backend=backend)
    for frame in frames_like(2, 4, 9, 10):
        torch.testing.assert_close(delta(frame.float()), dense(frame.float()))
