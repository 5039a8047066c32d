"""Chains of views that only pick become one `select`; those that do more do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deltaconvert.operators.select import select
from tests.passes.graphs import Model, assert_same_outputs, frames_like, program_of, specialised


def shuffle(self, x):
    n, c, h, w = x.size()
    x = x.view(n, 2, c // 2, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


SELECTS = {
    "shuffle": (shuffle, (0, 2, 1, 3), None, None),
    "channels": (lambda self, x: x[:, 1::2], (1, 3), None, None),
    "reversed": (lambda self, x: x.flip((1, 2)), (3, 2, 1, 0), (4, 3, 2, 1, 0), None),
    "crop": (lambda self, x: x[:, :, 1:-1, 2:], None, (1, 2, 3), (2, 3, 4, 5)),
    "subsampled": (lambda self, x: x[..., ::2, 1::2], None, (0, 2, 4), (1, 3, 5)),
    "there and back": (lambda self, x: x.permute(0, 2, 3, 1)[..., :2].permute(0, 3, 1, 2),
                       (0, 1), None, None),
    "a list": (lambda self, x: x[:, [2, 0, 2]], (2, 0, 2), None, None),
    "index_select": (lambda self, x: torch.roll(x, 1, 3), None, None, (5, 0, 1, 2, 3, 4)),
}


@pytest.mark.parametrize("what", SELECTS)
def test_picks(what):
    function, channels, rows, cols = SELECTS[what]
    stages = specialised(Model(lambda self, x: function(self, x) + 1), torch.randn(2, 4, 5, 6))
    assert stages["infer"] == ["select", "add"]
    (select,) = [n for n in stages["graph"].nodes if n.name != "add" and n.op == "call_function"]
    assert select.kwargs == {"channels": channels, "rows": rows, "cols": cols}
    assert_same_outputs(Model(function), frames_like(2, 4, 5, 6))


NOTHING = {
    "a view and back": lambda self, x: x.flatten(2).view(x.shape[0], -1, *(x.shape[2], x.shape[3])),
    "all channels": lambda self, x: x[:, :],
    "no shift": lambda self, x: x.roll(0, 1),
    "squeezed": lambda self, x: x.unsqueeze(2).squeeze(2),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_picks_everything_disappears(what):
    model = Model(lambda self, x: NOTHING[what](self, x) + 1)
    assert specialised(model, torch.randn(2, 4, 5, 6))["infer"] == ["add"]
    assert_same_outputs(model, frames_like(2, 4, 5, 6))


NO_SELECTS = {
    "lanes move": lambda self, x: x.flip(0),
    "lanes roll": lambda self, x: x.roll(1, 0),
    "lanes and channels change places": lambda self, x: x.transpose(0, 1).relu().transpose(0, 1),
    "rows become columns": lambda self, x: x.transpose(2, 3),
    "pixels become channels": lambda self, x: x.view(x.shape[0], 4, 2, 2, 2, 2).transpose(2, 3)
        .reshape(x.shape[0], 8, 2, 4),
    "a vector": lambda self, x: x.flatten(1)[:, 3:],
    "lanes picked": lambda self, x: x[:1],
}


@pytest.mark.parametrize("what", NO_SELECTS)
@pytest.mark.parametrize("lanes", [1, 4])
def test_what_does_more_is_no_select(what, lanes):
    """With as many lanes as channels, shapes alone would not tell."""
    if lanes == 1 and what.startswith("lanes"):
        pytest.skip("one lane cannot move")
    model = Model(lambda self, x: NO_SELECTS[what](self, x) * 2)
    assert "select" not in specialised(model, torch.randn(lanes, 4, 4, 4))["infer"]
    assert_same_outputs(model, frames_like(lanes, 4, 4, 4))


def test_two_halves_of_one_chunk_and_the_whole():
    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([b, self.conv(a), x], 1)
    model = Model(forward, conv=nn.Conv2d(2, 3, 1))
    delta = assert_same_outputs(model, frames_like(2, 4, 5, 6))
    names = [n.about.operator.name for n in program_of(delta).nodes[1:]]
    assert sorted(names) == ["cat", "conv2d", "select", "select"]


def test_a_larger_frame_gets_its_own_picks():
    import deltaconvert
    delta = deltaconvert.convert(Model(shuffle))
    for shape in [(1, 4, 3, 3), (1, 8, 5, 2), (3, 6, 1, 1)]:
        frame = torch.randn(shape)
        assert torch.equal(delta(frame), shuffle(None, frame))


def test_picks_are_copied_to_the_device_once(monkeypatch):
    """A frame that is captured as a CUDA graph must not copy from the host."""
    x, picks = torch.randn(1, 4, 3, 5), {"channels": (3, 0, 1), "rows": None, "cols": (4, 2)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert select(torch.empty(1, 4, 3, 5), **picks).shape == (1, 3, 3, 2)
    first = select(x, **picks)
    monkeypatch.delattr(torch, "tensor")
    assert torch.equal(select(x, **picks), first)
    assert torch.equal(first, x[:, [3, 0, 1]][..., [4, 2]])
