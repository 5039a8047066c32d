"""One step from identical state: every backend decides and computes as the reference does.

The reference runs a frame and its edges are kept. The other backend runs the same frame;
behind each of its nodes value and mask are compared with the reference's, and then
replaced by them, so that each node, and each frame, starts from identical state.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import deltaconvert
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge
from tests.law.checking import column, evaluate_at_double, over_channels, rounding_of
from tests.law.networks import clips, networks
from tests.law.steps import STEPS
from tests.law.test_law import runs_in, suite

# What the cpu backend runs itself; the rest would compare the reference with itself.
STORED = [torch.float32, torch.bfloat16]
OF_INTEREST = sorted(set(STEPS) - {"unknown", "mixes_lanes", "classifier", "global_pool"})


class Record:
    """An observer that keeps copies of the reference's edges, before and after."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, tuple[Tensor, Tensor]] = {}

    def next_frame(self) -> None:
        self.before = {name: value for name, (value, _) in self.after.items()}

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        if isinstance(edge.value, Tensor):
            self.after[node.about.name] = edge.value.clone(), edge.mask.clone()


class Compare:
    """An observer of the other backend's stream."""

    def __init__(self, record: Record) -> None:
        self.record, self.edges = record, {}
        self.compared = 0

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        name = node.about.name
        self.edges[name] = edge
        if not isinstance(edge.value, Tensor):
            return
        value, mask = self.record.after[name]
        if node.backend == "cpu":
            self.assert_same(node, edge, value, mask.bool())
            self.compared += 1
        if not node.about.aliases:
            edge.value.copy_(value)
        edge.mask.copy_(mask)
        edge.publish(mask.reshape(len(mask), -1).sum(1).tolist())

    def assert_same(self, node: DeltaNode, edge: Edge, value: Tensor, mask: Tensor) -> None:
        name = node.about.name
        values = [self.edges[spec.name].value for spec in node.about.inputs]
        exact = value.double() if not values else evaluate_at_double(node, values)
        rounding = rounding_of(node, values, exact, edge) if values else 0.0
        mine = edge.mask.bool()
        before = self.record.before.get(name)
        exempt = torch.zeros_like(mask)
        if before is not None:
            size = over_channels(exact - before.double(), edge, node.about.norm)
            limit = column(edge.threshold, size)
            exempt = (size - limit).abs() <= rounding + 1e-6 * limit
            if not values:  # the reference's value is not the frame where it was held back
                exempt = torch.zeros_like(mask)
        wrong = (mine != mask) & ~exempt
        assert not wrong.any(), f"{name}: decided otherwise at {wrong.nonzero().tolist()[:5]}"
        apart = (edge.value.double() - value.double()).abs().amax(1)
        both = mine == mask
        assert (apart[both] <= 2 * rounding).all(), (
            f"{name}: {float(apart[both].max()):.3g} apart, rounding {rounding:.3g}")


def run_side_by_side(model: nn.Module, clip, threshold: float = 0.0,
                     dtype: torch.dtype = torch.float32, **config) -> int:
    model = copy.deepcopy(model).to(dtype)
    assume(runs_in(model, dtype, clip[0].pixels))
    record, config = Record(), {"nodes": {"*": threshold}, **config}
    reference = deltaconvert.convert(model, backend="reference", **config)
    other = deltaconvert.convert(model, backend="cpu", **config)
    compare = Compare(record)
    reference.observe(record)
    other.observe(compare)
    for frame in clip:
        record.next_frame()
        for delta in (reference, other):
            delta.reset(frame.reset)
            delta(frame.pixels.to(dtype, copy=True))
    return compare.compared


@suite(60)
@given(data=st.data())
def test_cpu_agrees_with_the_reference_node_by_node(data):
    network = data.draw(networks())
    clip = data.draw(clips(network.shape))
    run_side_by_side(network.model, clip, threshold=data.draw(st.sampled_from([0.0, 0.02, 0.3])),
                     dtype=data.draw(st.sampled_from(STORED)),
                     norm=data.draw(st.sampled_from(["max", "rms"])),
                     input_threshold=data.draw(st.sampled_from([0.0, 0.1])),
                     dense_fallback=data.draw(st.booleans()))


@pytest.mark.parametrize("name", OF_INTEREST)
@suite(6)
@given(data=st.data())
def test_each_operator_agrees(name, data):
    network = data.draw(networks(using=[name, "pointwise"], most_steps=0))
    clip = data.draw(clips(network.shape, frames=3))
    assert run_side_by_side(network.model, clip, threshold=data.draw(
        st.sampled_from([0.0, 0.02, 0.3])), dtype=data.draw(st.sampled_from(STORED)))


@suite(20)
@given(data=st.data())
def test_the_block_test_agrees(data):
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(3, 21),
                                st.integers(3, 21)))
    clip = data.draw(clips(shape))
    model = nn.Conv2d(shape[1], 2, 3, padding=1)
    run_side_by_side(model, clip, input_threshold=data.draw(st.sampled_from([0.01, 0.1, 0.5])),
                     input_test="block", input_cap=data.draw(st.sampled_from([None, 0.3, 2.0])),
                     norm=data.draw(st.sampled_from(["max", "rms"])))
