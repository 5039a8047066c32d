"""The cpu backend's door in against the reference backend's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deltaconvert.backends import reference
from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cpu import CpuBackend
from deltaconvert.config import Config
from deltaconvert.errors import FrameError
from deltaconvert.nodes import Description, EdgeSpec, SparsifyNode
from deltaconvert.state import Edge, State

LANES = 2
LAYOUTS = {
    "planes": lambda f: f.contiguous(),
    "interleaved": lambda f: f.contiguous(memory_format=torch.channels_last),
    "crop": lambda f: torch.nn.functional.pad(f, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
    "flipped planes": lambda f: f.transpose(2, 3).contiguous().transpose(2, 3),
}


class Door:
    """Both doors, fed the same frames."""

    def __init__(self, channels: int = 3, **settings: Any) -> None:
        config = Config(threads=2, **settings)
        spec = EdgeSpec("x", (LANES, channels, 45, 61), torch.float32, LANES)
        self.node = SparsifyNode(Description(
            "x", "", "", "sparsify", "", torch.clone, None, (), {}, (), spec,
            threshold=config.input_threshold, norm=config.norm))
        self.state = State(LANES, [True] * LANES)
        self.edges = [self._edge(spec, config) for _ in range(2)]
        backend = CpuBackend(config)
        assert backend.supports(self.node) is None
        scratch = {want.name: torch.empty(want.nbytes, dtype=torch.uint8)
                   for want in backend.plan(self.node)}
        self.ours: Any = backend.bind(self.node, None,
                                      Buffers((), self.edges[0], self.state, scratch))
        self.oracle: Any = reference.create(config).bind(
            self.node, None, Buffers((), self.edges[1], self.state))

    @staticmethod
    def _edge(spec: EdgeSpec, config: Config) -> Edge:
        assert spec.shape is not None
        value = torch.zeros(spec.shape).contiguous(memory_format=torch.channels_last)
        return Edge(spec, value, torch.zeros(spec.mask_shape, dtype=torch.uint8),
                    config.input_threshold)

    def check(self, frame: Tensor) -> None:
        for step in (self.ours, self.oracle):
            step.examine(frame)
            step(frame)
        self.state.fresh[:] = [False] * LANES
        ours, oracle = self.edges
        assert torch.equal(ours.mask, oracle.mask)
        assert torch.equal(ours.value, oracle.value)
        assert list(ours.counts) == list(oracle.counts)


def clip(channels: int = 3) -> list[Tensor]:
    """Return frames: a first one, the same again, noise, a moving square, all lanes new."""
    random = torch.Generator().manual_seed(1)
    first = torch.rand(LANES, channels, 45, 61, generator=random)
    noisy = first + 0.04 * torch.randn(first.shape, generator=random)
    moved = noisy.clone()
    moved[1, :, 10:25, 20:50] += 0.5
    speck = moved.clone()
    speck[0, :, 44, 60] += 3
    new = torch.rand(first.shape, generator=random)
    return [first, first.clone(), noisy, moved, speck, new]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", [
    {}, {"input_threshold": 0.05}, {"input_threshold": 0.05, "norm": "rms"},
    {"input_threshold": 0.03, "input_test": "block"},
    {"input_threshold": 0.03, "input_test": "block", "norm": "rms", "input_cap": 0.2},
], ids=["exact", "max", "rms", "block", "block rms"])
def test_equals_the_reference(settings: dict[str, Any], layout: str) -> None:
    door = Door(**settings)
    for frame in clip():
        door.check(LAYOUTS[layout](frame))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("test", ["pixel", "block"])
def test_other_numbers_of_channels(channels: int, test: Any) -> None:
    door = Door(channels, input_threshold=0.05, input_test=test)
    for frame in clip(channels):
        door.check(frame)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("test", ["pixel", "block"])
def test_a_refused_frame_leaves_no_trace(bad: float, layout: str, test: Any) -> None:
    door = Door(input_threshold=0.01, input_test=test)
    frames = clip()
    door.check(LAYOUTS[layout](frames[0]))
    door.check(LAYOUTS[layout](frames[3]))
    edge = door.edges[0]
    before = edge.value.clone(), edge.mask.clone(), list(edge.counts)
    broken = frames[5].clone()
    broken[1, -1, 44, 60] = bad
    with pytest.raises(FrameError, match=r"1 numbers that are NaN or infinite \(lanes \[1\]\)"):
        door.ours.examine(LAYOUTS[layout](broken))
    assert torch.equal(edge.value, before[0])
    assert torch.equal(edge.mask, before[1])
    assert list(edge.counts) == before[2]
    door.check(LAYOUTS[layout](frames[4]))


@pytest.mark.parametrize("test", ["pixel", "block"])
def test_a_frame_of_large_numbers_is_no_infinity(test: Any) -> None:
    door = Door(input_threshold=0.01, input_test=test)
    door.check(torch.full((LANES, 3, 45, 61), -3e38))
    door.check(torch.full((LANES, 3, 45, 61), 3e38))  # the difference overflows
