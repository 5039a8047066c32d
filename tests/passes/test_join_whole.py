"""What runs whole one after the other is one node; gates, and what may rest, are nodes still."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.config import NodeConfig
from deltaconvert.nodes import Slot
from deltaconvert.passes.lower import Joined
from tests.passes.graphs import (
    Model,
    TwoInputs,
    assert_same_outputs,
    frames_like,
    program_of,
)

SIZE = (2, 8, 24, 24)  # 4608 numbers a lane and map; tokens of 32 numbers are more than a vector


def tokens(self, x):
    """Return ``[N, L, 32]``."""
    return self.widen(x).flatten(2).transpose(1, 2)


def attention(self, x):
    q, k, v = self.qkv(tokens(self, x)).chunk(3, -1)
    y = F.softmax(q @ k.transpose(1, 2) / 4, -1) @ v
    return self.conv(y.transpose(1, 2).reshape(x.shape[0], 32, x.shape[2], x.shape[3]))


def of_one_tuple(self, x):
    q, k, v = self.qkv(tokens(self, x)).reshape(x.shape[0], -1, 3, 32).permute(2, 0, 1, 3).unbind()
    return self.conv((q + k * v).transpose(1, 2).reshape(x.shape[0], 32, x.shape[2], x.shape[3]))


def attention_of_channels(self, x):
    """As EdgeNeXt: the products of channels are little more than a vector, and stay a node."""
    q, k, v = self.qkv(tokens(self, x)).reshape(x.shape[0], -1, 3, 32).permute(2, 0, 3, 1).unbind()
    y = F.softmax(F.normalize(q) @ F.normalize(k).transpose(1, 2), -1) @ v
    return self.conv(y.reshape(x.shape[0], 32, x.shape[2], x.shape[3]))


def split_attention(self, x):
    """As ResNeSt and SKNet: a view that a sum and a product read."""
    parts = self.widen(x).reshape(x.shape[0], 2, 16, x.shape[2], x.shape[3])
    gate = F.softmax(self.gate(parts.sum(1).mean((2, 3))).view(x.shape[0], 2, 16, 1, 1), 1)
    return self.narrow((parts * gate).sum(1))


#: models, and how many of the nodes that run whole remain
JOINED = {attention: 1, of_one_tuple: 1, attention_of_channels: 2, split_attention: 4}


def model(function, kind=Model):
    torch.manual_seed(0)
    return kind(function, widen=nn.Conv2d(8, 32, 1), qkv=nn.Linear(32, 96),
                conv=nn.Conv2d(32, 4, 3), gate=nn.Linear(16, 32), narrow=nn.Conv2d(16, 4, 3),
                squeeze=nn.Conv2d(32, 8, 1), excite=nn.Conv2d(8, 32, 1))


def run_whole(delta):
    return [n.about for n in program_of(delta).nodes if n.about.rule in ("global", "unknown")]


@pytest.mark.parametrize("function", JOINED, ids=lambda f: f.__name__)
def test_joins(function):
    delta = assert_same_outputs(model(function), frames_like(*SIZE))
    assert len(run_whole(delta)) == JOINED[function]
    assert all(node.output.shape is not None for node in run_whole(delta)), "a tuple of tensors"


@pytest.mark.parametrize("function", [attention, of_one_tuple], ids=lambda f: f.__name__)
def test_tokens_of_a_small_map_are_no_vectors(function):
    delta = assert_same_outputs(model(function), frames_like(2, 8, 8, 8))
    assert len(run_whole(delta)) == 1


def test_joins_what_norms_all_tokens_as_rows():
    """As LeViT: a norm of ``NL x C``, and queries cut out of what it makes, between views."""
    def forward(self, x):
        y = tokens(self, x)
        y = self.rows(y.flatten(0, 1)).reshape_as(y).view(x.shape[0], -1, 2, 16)
        q, k = y[..., :8].transpose(1, 2), y[..., 8:].transpose(1, 2)
        y = F.softmax(q @ k.transpose(-2, -1), -1) @ k
        return self.squeeze(y.transpose(1, 2).reshape(x.shape[0], 16, *x.shape[2:]))

    torch.manual_seed(0)
    made = Model(forward, widen=nn.Conv2d(8, 32, 1), rows=nn.BatchNorm1d(32),
                 squeeze=nn.Conv2d(16, 8, 1))
    (joined,) = run_whole(assert_same_outputs(made, frames_like(*SIZE)))
    assert joined.rule == "global"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("function", JOINED, ids=lambda f: f.__name__)
def test_keeps_the_law_with_thresholds(function, backend):
    frames = [frame.float() for frame in frames_like(*SIZE)]
    delta = deltaconvert.convert(model(function), backend=backend, threshold=0.05)
    report = deltaconvert.validate(model(function), delta, frames, tolerance=1.0, law_every=1)
    assert report.passed


def test_counts_the_multiply_adds_of_all():
    delta = assert_same_outputs(model(attention), frames_like(*SIZE))
    (joined,) = run_whole(delta)
    assert joined.multiply_adds == 2 * (24 * 24)**2 * 32  # the projection is local, on its map
    assert joined.rule == "global"


def test_what_is_not_known_is_told_apart():
    """Its reason and its share of the work must not vanish in a node that is known."""
    def cumulative(self, x):
        q, k = self.qkv(tokens(self, x)).split((32, 64), -1)
        return k.transpose(1, 2) @ torch.cumsum(q.softmax(-1), -1)

    delta = assert_same_outputs(model(cumulative), frames_like(*SIZE))
    assert [n.function_name for n in run_whole(delta) if n.rule == "unknown"] == ["cumsum"]


def test_a_gate_stays_a_node_of_its_own():
    def gated(self, x):
        y = self.widen(x)
        return y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
    delta = assert_same_outputs(model(gated), frames_like(*SIZE))
    assert [n.function_name for n in run_whole(delta)] == ["mean"]


def test_what_reads_one_of_two_inputs_rests():
    """The tokens of a picture that stays as it is are not computed again."""
    def across(self, x, y):
        ours, theirs = self.qkv(tokens(self, x)), self.qkv(tokens(self, y))
        return ours @ theirs.transpose(1, 2)

    delta = assert_same_outputs(model(across, TwoInputs), frames_like(*SIZE), frames_like(*SIZE))
    clip, still = frames_like(*SIZE), frames_like(*SIZE)[0]
    delta.reset()
    for frame in clip:
        delta(frame, still)
    _, theirs, product = run_whole(delta)
    assert delta.stream.last[theirs.name].candidates == 0
    assert delta.stream.last[product.name].candidates > 0


def test_settings_by_a_joined_nodes_name_hold():
    names = [n.about.name for n in program_of(assert_same_outputs(
        model(attention), frames_like(*SIZE))).nodes]
    assert "matmul_1" not in names
    own = NodeConfig(0.25, norm="rms")
    delta = deltaconvert.convert(model(attention), threshold=0.125, nodes={"matmul_1": own})
    delta(frames_like(*SIZE)[0].float())
    joined = run_whole(delta)[0]
    assert (joined.threshold, joined.norm) == (own.threshold, own.norm)


@pytest.mark.parametrize("said", [0.0, 0.25])
def test_a_setting_of_the_last_of_them_is_the_threshold(said):
    """The last of an attention only moves numbers, which holds nothing back by itself."""
    delta = deltaconvert.convert(model(attention), backend="reference")
    delta(frames_like(*SIZE)[0].float())
    last = run_whole(delta)[0].name
    delta = deltaconvert.convert(model(attention), threshold=0.1, nodes={last: said})
    delta(frames_like(*SIZE)[0].float())
    assert run_whole(delta)[0].threshold == said


def test_results_are_dropped_behind_their_last_reader():
    seen = []

    def first(x):
        return x + 1

    def second(x):
        seen.append(weakref.ref(x))
        return x * 2

    def third(x):
        return seen[0](), x.sum()

    joined = Joined([(first, (Slot(0),), {}), (second, (Slot(1),), {}), (third, (Slot(2),), {})])
    assert joined(torch.zeros(2)) == (None, 4)
    assert joined.__name__ == "first_to_third"


def test_modules_that_are_called_as_they_are_are_joined():
    """As the convolutions of a network for clips."""
    def forward(self, x):
        return self.norm(self.conv(x[:, None])).flatten(1, 2)

    model = Model(forward, conv=nn.Conv3d(1, 2, 3, padding=1), norm=nn.BatchNorm3d(2))
    delta = assert_same_outputs(model, frames_like(*SIZE))
    assert "Conv3d_to_BatchNorm3d" in [n.about.function_name for n in program_of(delta).nodes]


def test_a_network_for_clips_is_one_node():
    """As X3D: a gate, a residual and activations between convolutions that are not known."""
    def forward(self, x):
        y = F.silu(self.norm(self.conv(x.unflatten(1, (2, -1)))))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3, 4), keepdim=True)))
        return F.relu(y + self.conv(F.relu(y)[:, :2]))

    model = Model(forward, conv=nn.Conv3d(2, 4, 3, padding=1), norm=nn.BatchNorm3d(4),
                  gate=nn.Conv3d(4, 4, 1))
    delta = assert_same_outputs(model, frames_like(*SIZE))
    told = [(n.about.rule, n.about.reason) for n in program_of(delta).nodes if n.about.reason]
    assert told == [("unknown", "Conv3d is not an operator that deltaconvert knows")]
    model, frame = model.bfloat16(), torch.rand(SIZE).bfloat16()
    delta = deltaconvert.convert(model)
    delta(frame)
    assert len(program_of(delta).nodes) == 3  # in whatever precision, if it is the model's own
    kept = deltaconvert.convert(model, dtype="float32")
    kept(frame)
    assert len(program_of(kept).nodes) > 3
