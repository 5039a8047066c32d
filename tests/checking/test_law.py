"""The law's checker: it finds what is planted, and takes no rounding for a breach."""

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.checking.law import LawChecker, TensorStats, _evaluate_in_float64, check_law
from deltaconvert.clips import synthetic


@pytest.fixture
def frames():
    return [f[None] for f in synthetic((24, 40), 5, active_share=0.1, noise=0.02)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 4, 5), nn.Sigmoid()).eval()


SETTINGS = [
    {}, {"threshold": 0.05}, {"threshold": 0.1, "threshold_unit": "std", "norm": "rms"},
    {"input_threshold": 0.05, "norm": "rms"},
    {"input_threshold": 0.02, "input_test": "block", "input_cap": 0.09},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_holds(model, frames, settings, dtype):
    delta = deltaconvert.convert(model.to(dtype), backend="reference", **settings)
    breaches = check_law(delta, [f.to(dtype) for f in frames])
    assert not breaches, breaches[0]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_value_moved_by_more_than_the_threshold_is_found(model, frames, settings):
    """Behind the third frame, the first node's value is moved at one pixel by over 1."""
    delta = deltaconvert.convert(model, backend="reference", **settings)
    stream, checker = delta.new_stream(), LawChecker(delta, each=False)
    stream.observe(checker)
    edges = {}
    for frame in frames[:3]:
        checker.begin(frame)
        stream(frame)
        assert checker.check() == []
    stream.observe(lambda node, edge: edges.update({node.about.name: edge}))
    stream(frames[3])
    node = stream.program.nodes[1]
    edges[node.about.name].value[0, :, 3, 4] += 1.5
    stream.observe(checker)
    checker.begin(frames[3])
    stream(frames[3])  # nothing changes, so nothing is repaired
    breach = checker.check()[0]
    assert (breach.node, breach.where) == (node.about.name, (0, 3, 4))
    assert 1.0 < breach.change < 2.0
    assert breach.frame == 3
    assert breach.to_dict()["expected"]["maximum"] == breach.expected.maximum


def test_observing_each_node_finds_the_same(model, frames):
    delta = deltaconvert.convert(model, backend="reference")
    checker = LawChecker(delta)
    delta.observe(checker)
    for frame in frames:
        checker.begin(frame)
        delta(frame)
    assert checker.breaches == []
    assert checker.nodes_seen == len(delta.stream.program.nodes)
    program_node = delta.stream.program.nodes[1].about
    delta.stream._state.edges[program_node.name].value += 1
    delta.stream._state.edges[program_node.inputs[0].name].mask.zero_()
    checker.begin(frames[-1])
    delta(frames[-1])
    assert checker.breaches[0].node == program_node.name


@pytest.mark.parametrize("settings", [
    {}, {"input_threshold": 0.02, "input_test": "block"},
    {"input_threshold": 1.0, "input_test": "block", "input_cap": 0.3},  # found by the cap alone
])
def test_a_frame_that_was_not_taken_is_found_at_the_door(model, frames, settings):
    delta = deltaconvert.convert(model, backend="reference", **settings)
    stream, checker = delta.new_stream(), LawChecker(delta)
    stream.observe(checker)
    checker.begin(frames[1])
    stream(frames[0])
    assert checker.breaches[0].rule == "sparsify"


def test_rounding_of_another_order_of_sums_is_no_breach(model, frames):
    """The value moves by what float32 is off float64: allowed; by 50 times that: not."""
    delta = deltaconvert.convert(model, backend="reference")
    for times, broken in ((1.0, False), (50.0, True)):
        stream, checker = delta.new_stream(), LawChecker(delta, each=False)
        stream.observe(checker)
        checker.begin(frames[0])
        stream(frames[0])
        node = next(n for n in stream.program.nodes if n.about.path == "3")
        edge = stream._state.edges[node.about.name]
        values = [stream._state.edges[e.name].value for e in node.about.inputs]
        with torch.no_grad():
            exact = _evaluate_in_float64(node, values)
            edge.value += times * (exact - edge.value.double()).abs().max().float()
        assert bool(checker.check()) is broken


def test_what_is_not_a_tensor_is_compared_leaf_by_leaf(frames):
    class Split(nn.Module):
        def forward(self, x):
            a, b = torch.std_mean(x, dim=1)
            return a + b

    delta = deltaconvert.convert(Split().eval(), backend="reference")
    assert check_law(delta, frames) == []


def test_statistics_leave_out_what_is_not_finite():
    stats = TensorStats.of(torch.tensor([1.0, 3.0, float("inf"), float("nan")]))
    assert (stats.minimum, stats.maximum, stats.mean, stats.std) == (1, 3, 2, 1)
    assert str(stats) == "min 1, max 3, mean 2, std 1, 2 not finite"
