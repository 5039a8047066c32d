"""From Python code to a graph."""

from __future__ import annotations

import linecache
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.errors import TraceError
from deltaconvert.passes.trace import trace
from tests.passes.graphs import Model, TwoInputs, assert_same_outputs, frames_like

Pair = namedtuple("Pair", "first second")
OUTPUTS = {
    "tensor": lambda self, x: x + 1,
    "list": lambda self, x: [x + 1, x * 2],
    "tuple": lambda self, x: (x + 1,),
    "dict": lambda self, x: {"a": x + 1, "b": [x * 2, (x - 1,)]},
    "ordered": lambda self, x: OrderedDict(out=x + 1, aux=x * 2),
    "named tuple": lambda self, x: Pair(x + 1, {"deep": x}),
    "none inside": lambda self, x: (x + 1, None, 3),
    "a split": lambda self, x: x.split(1, 1),
    "the input": lambda self, x: x,
    "the input twice": lambda self, x: (x, x + 1, x),
    "a constant": lambda self, x: (x * 2, torch.ones(2)),
    "a size": lambda self, x: (x * 2, x.shape[2]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_have_the_models_structure(kind):
    delta = assert_same_outputs(Model(OUTPUTS[kind]), frames_like(2, 3, 5, 6))
    assert type(delta(frames_like(2, 3, 5, 6)[0])) is type(OUTPUTS[kind](None,
                                                                         torch.ones(2, 3, 5, 6)))


def branches_on_numbers(self, x):
    x = F.relu(x)
    if x.sum() > 0:
        return x
    return -x


def iterates_over_a_tensor(self, x):
    return sum(lane for lane in x)


def calls_numpy(self, x):
    return x + x.numpy().sum()


@pytest.mark.parametrize("function, line", [
    (branches_on_numbers, "if x.sum() > 0:"),
    (iterates_over_a_tensor, "return sum(lane for lane in x)"),
])
def test_what_cannot_be_traced_names_the_users_line(function, line):
    with pytest.raises(TraceError) as caught:
        trace(Model(function))
    number = next(n for n in range(1, 200) if linecache.getline(__file__, n).strip() == line)
    assert f"{__file__}:{number}: {line}" in str(caught.value)


def test_the_message_offers_the_submodules_that_can_be_converted():
    model = Model(branches_on_numbers, backbone=nn.Conv2d(1, 1, 1), neck=nn.Conv2d(1, 1, 1))
    with pytest.raises(TraceError, match=r"model\.backbone \(of backbone, neck\)"):
        trace(model)
    deltaconvert.convert(model.backbone)


@pytest.mark.parametrize("thing", [{"state": 1}, F.relu, "resnet50"])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(TraceError, match=f"not a {type(thing).__name__}"):
        trace(thing)


def test_parameters_with_a_default_keep_it():
    class Masked(nn.Module):
        def forward(self, x, mask=None, scale=2.0, *, shift=1):
            x = x * scale + shift
            return x if mask is None else x * mask
    assert_same_outputs(Masked(), frames_like(1, 2, 5, 5))


def test_a_copy_in_eval_mode_is_traced():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    traced = trace(model)
    traced(torch.randn(2, 2, 3, 3))
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in traced.meta["root"].modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert traced.meta["root"][0].weight is not model[0].weight


def test_nodes_know_their_line_and_their_module():
    def forward(self, x):
        return F.relu(self.block(x))
    traced = trace(Model(forward, block=nn.Sequential(nn.Conv2d(1, 1, 1))))
    relu, conv = (next(n for n in traced.graph.nodes if n.name == name)
                  for name in ("relu", "block_0"))
    assert relu.meta["source"].startswith(__file__)
    assert relu.meta["source"].endswith("return F.relu(self.block(x))")
    assert conv.meta["path"] == "block.0"


def test_a_module_called_twice_is_two_nodes():
    model = Model(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2d(2, 2, 3, padding=1))
    delta = assert_same_outputs(model, frames_like(1, 2, 6, 6))
    assert [n.about.path for n in delta.stream.program.nodes][1:] == ["conv", "conv"]


def test_several_inputs_and_one_that_nobody_reads():
    model = TwoInputs(lambda self, x, y: x * 2 + y.mean((2, 3), keepdim=True))
    assert_same_outputs(model, frames_like(2, 3, 5, 5), frames_like(2, 3, 4, 4, seed=1))
    assert_same_outputs(TwoInputs(lambda self, x, y: y * 2), frames_like(2, 3, 5, 5),
                        frames_like(2, 3, 4, 4, seed=1))


@pytest.mark.parametrize("call", [
    lambda delta, x, y: delta(x, y), lambda delta, x, y: delta(x, y=y),
    lambda delta, x, y: delta(y=y, x=x)])
def test_inputs_may_be_given_by_name(call):
    delta = deltaconvert.convert(TwoInputs(lambda self, x, y: x - y))
    x, y = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3)
    assert torch.equal(call(delta, x, y), x - y)


def test_an_input_named_like_a_builtin_may_be_given_by_name():
    class Named(nn.Module):
        def forward(self, input):
            return input * 2
    x = torch.randn(1, 1, 3, 3)
    assert torch.equal(deltaconvert.convert(Named())(input=x), x * 2)


def test_any_number_of_inputs_is_refused_with_a_reason():
    class Many(nn.Module):
        def forward(self, *images):
            return images[0]
    with pytest.raises(TraceError, match=r"^Many cannot be traced: forward\(self, \*images\)"):
        trace(Many())


def test_wrapped_functions_leave_nothing_behind():
    """`torch.fx.wrap` is global; what the graph calls must not be added to its table."""
    from torch.fx._symbolic_trace import _wrapped_fns_to_patch
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    before = dict(_wrapped_fns_to_patch)
    traced = trace(swin.ShiftedWindowAttention(4, [2, 2], [0, 0], 1))
    assert swin.shifted_window_attention in [n.target for n in traced.graph.nodes]
    traced.recompile()
    assert dict(_wrapped_fns_to_patch).keys() == before.keys()
