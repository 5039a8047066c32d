"""The plan's bytes are those allocated, and concatenations are written in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from tests.law.steps import Grow
from tests.passes.graphs import Model, assert_same_outputs, frames_like, program_of


def two(self, x):
    return torch.cat([self.a(x), self.b(x)], 1)


def nested(self, x):
    inner = torch.cat([self.a(x), self.b(x)], 1)
    return torch.cat([F.relu(x), torch.cat([inner, self.a(x)], 1)], 1)


def twice(self, x):
    a = self.a(x)
    return torch.cat([a, a], 1)


def of_the_input(self, x):
    return torch.cat([x, self.a(x)], 1)


def in_two(self, x):
    a, b = self.a(x), self.b(x)
    return torch.cat([a, b], 1), torch.cat([b, F.relu(a)], 1)


def read_elsewhere_too(self, x):
    a, b = self.a(x), self.b(x)
    return self.join(torch.cat([a, b], 1)) + a, b


def with_a_constant(self, x):
    return torch.cat([self.a(x), self.w.expand(x.shape[0], -1, x.shape[2], x.shape[3])], 1)


def over_lanes(self, x):
    return torch.cat([self.a(x), self.b(x)], 0)


def of_picks_and_gates(self, x):
    a = self.a(x)
    gate = torch.sigmoid(F.adaptive_avg_pool2d(a, 1))
    return torch.cat([a[:, :1], a * gate, a.flip(1)], 1)


def of_gates_alone(self, x):
    """Global nodes that write into slices of a concatenation."""
    return torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1)


def of_unknown_nodes(self, x):
    return torch.cat([torch.tanh(x), x.cumsum(2)], 1)


def of_outputs(self, x):
    a = self.a(x)
    whole = torch.cat([a, self.b(x)], 1)
    return a, whole


def written_behind(self, x):
    a = self.a(x)
    whole = torch.cat([a, self.b(x)], 1)
    a += 1
    whole[:, :1] *= 2
    return whole, a


def growing(self, x):
    """What a dense block joins: all that it made so far, and once more a run in the middle."""
    a = self.a(x)
    b = self.b(torch.cat([a], 1))
    c = self.join(torch.cat([a, b], 1))
    every = torch.cat([a, b, c], 1)
    return every, torch.cat([b, c], 1), torch.cat([a, c], 1)


def in_one_and_its_run_in_another(self, x):
    """The run lies in the larger one, and its copy in the smaller."""
    a, b, c = self.a(x), self.b(x), self.b(F.relu(x))
    run = torch.cat([a, b], 1)
    return torch.cat([a, b, c, F.relu(c)], 1), torch.cat([run, self.a(b)], 1)


#: the concatenations, and which of them are made in place
CASES = {
    two: {"cat": True}, nested: {"cat": True, "cat_1": True, "cat_2": True}, twice: {"cat": False},
    of_the_input: {"cat": False}, in_two: {"cat": True, "cat_1": False},
    read_elsewhere_too: {"cat": True}, with_a_constant: {"cat": False}, over_lanes: {"cat": False},
    of_picks_and_gates: {"cat": True}, of_gates_alone: {"cat": True},
    of_unknown_nodes: {"cat": True},
    of_outputs: {"cat": True}, written_behind: {"cat": True},
    growing: {"cat": True, "cat_1": True, "cat_2": True, "cat_3": True, "cat_4": False},
    in_one_and_its_run_in_another: {"cat": False, "cat_1": True, "cat_2": True},
}


def model(function) -> Model:
    return Model(function, a=nn.Conv2d(2, 2, 3, padding=1), b=nn.Conv2d(2, 2, 1),
                 join=nn.Conv2d(4, 2, 3, padding=1), w=torch.randn(1, 1, 1, 1))


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_in_place_where_it_can_be(function):
    delta = assert_same_outputs(model(function), frames_like(2, 2, 6, 7))
    aliases = {n.about.name: n.about.aliases for n in program_of(delta).nodes
               if n.about.operator and n.about.operator.name == "cat"}
    assert aliases == CASES[function]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_on_every_backend_with_thresholds(function, backend):
    """Held back or not, a slice of a concatenation is its input's value."""
    delta = deltaconvert.convert(model(function), backend=backend, nodes={"*": 0.3})
    edges = {}
    delta.observe(lambda node, edge: edges.__setitem__(node.about.name, (node.about, edge)))
    for frame in frames_like(2, 2, 6, 7):
        delta(frame.float())
        for about, edge in edges.values():
            if about.aliases:
                joined = torch.cat([edges[s.name][1].value for s in about.inputs], 1)
                assert torch.equal(edge.value, joined)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_the_plans_bytes_are_those_allocated(function, backend):
    frame = torch.randn(2, 2, 6, 7)
    delta = deltaconvert.convert(model(function), frame, backend=backend)
    plan = delta.program(delta.signature([frame]), [frame]).plan
    buffers, scratch, _ = plan.allocate(torch.device("cpu"))
    tensors = [t for pair in buffers.values() for t in pair if t is not None]
    tensors += scratch.values()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
                if t.numel()}
    assert plan.nbytes == sum(storages.values())
    delta(frame)
    assert delta.stream.state_bytes == plan.nbytes


def test_before_the_first_frame_there_is_no_state():
    delta = deltaconvert.convert(model(two))
    assert delta.stream.state_bytes == 0
    delta(torch.randn(1, 2, 4, 4))
    # input 2, a and b in the concatenation 4 channels of 16 pixels; a mask each and its own
    assert delta.stream.program.plan.value_bytes == (2 + 4) * 16 * 4


def test_a_dense_block_shares_what_it_can():
    block = Model(lambda self, x: self.m(x), m=nn.Sequential(Grow(2), Grow(4), Grow(6)))
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    delta = assert_same_outputs(block, frames_like(2, 2, 6, 6))
    aliases = [n.about.aliases for n in program_of(delta).nodes
               if n.about.operator and n.about.operator.name == "cat"]
    assert aliases == [False, True, True]


def test_values_lie_channels_last():
    delta = deltaconvert.convert(nn.Conv2d(3, 5, 3), backend="reference")
    edges = []
    delta.observe(lambda node, edge: edges.append(edge))
    delta(torch.randn(2, 3, 6, 7))
    for edge in edges:
        assert edge.value.is_contiguous(memory_format=torch.channels_last)
