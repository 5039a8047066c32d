"""``bisect``: the first node that breaks the law, and where errors come in."""

import json

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.backends import reference
from deltaconvert.checking.bisect import bisect


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    made = [torch.rand(1, 3, 16, 16, generator=generator)]
    for time in range(4):
        frame = made[-1].clone()
        frame[..., time:time + 3, 2:5] = torch.rand(3, 3, generator=generator)
        made.append(frame)
    return made


def network(**settings):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
              nn.Conv2d(4, 4, 1)]
    return deltaconvert.convert(nn.Sequential(*layers), backend="reference", **settings)


def test_an_exact_network_differs_nowhere(frames):
    found = bisect(network(), frames)
    assert (found.frames, found.nodes, found.breach) == (5, 4, None)
    assert all(error.relative_rms < 1e-6 for error in found.errors)
    assert "all 4 nodes keep the law in all 5 frames" in str(found)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_frames_with_their_channels_last_are_held_against_what_the_door_sees(frames, backend):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    delta = deltaconvert.convert(Last(), backend=backend)
    found = bisect(delta, [f.permute(0, 2, 3, 1) for f in frames])
    assert (found.frames, found.breach) == (5, None)
    assert all(error.relative_rms < 1e-6 for error in found.errors)


def test_it_names_the_first_node_and_stops_there(frames, monkeypatch):
    apply_rule = reference.apply_rule

    def broken(edge, new, candidates, fresh, norm):
        if edge.spec.name.endswith("2") and (
                fresh is None or not bool(fresh.any())):
            new = new + 0.1
        apply_rule(edge, new, candidates, fresh, norm)

    monkeypatch.setattr(reference, "apply_rule", broken)
    found = bisect(network(), frames)
    assert found.frames == 2
    assert found.breach.node.endswith("2")
    assert found.breach.change == pytest.approx(0.1, rel=1e-4)
    assert str(found).startswith("bisect: the first node that breaks the law\n")
    json.dumps(found.to_dict(), allow_nan=False)


def test_it_says_where_errors_come_in(frames):
    found = bisect(network(nodes={"0": 0.5}), frames)
    worst = max(found.errors, key=lambda error: error.grown)
    assert worst.node.endswith("0")
    assert worst.relative_rms > 0.01
    assert "where errors against dense come in:" in str(found)
