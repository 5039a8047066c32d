"""Nodes that read whole lanes: means, vectors and linear layers, against the reference backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deltaconvert
from deltaconvert.config import Config

MODELS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "pool": (lambda x: F.adaptive_avg_pool2d(x, 1), ["adaptive_avg_pool2d"]),
    "mean": (lambda x: x.mean((2, 3)), ["mean"]),
    "mean, dimensions kept": (lambda x: x.mean((-1, -2), keepdim=True), ["mean"]),
    "pool and flatten": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1),
                         ["adaptive_avg_pool2d", "flatten"]),
    "pool and reshape": (lambda x: F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1),
                         ["adaptive_avg_pool2d", "reshape"]),
    "gate": (lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
             ["adaptive_avg_pool2d", "sigmoid", "mul"]),
}
OTHERS = {"mean of a line": lambda x: x.mean(3), "flatten a map": lambda x: x.flatten(1),
          "softmax of a vector": lambda x: x.mean((2, 3)).softmax(1)}


class Model(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def clip(*shape: int, frames: int = 6) -> list[Tensor]:
    """Frames of which a corner of the second lane changes, then all, then nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    made = [x.clone()]
    for frame in range(1, frames):
        if frame % 3:
            x[-1, :, :2, :3] += torch.randn(x[-1, :, :2, :3].shape, generator=generator)
        made.append(x.clone())
    return made


def backends_of(delta: Any) -> dict[str, str]:
    return {n.about.name: n.backend for n in delta.stream.program.nodes}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 70, 13, 9), (1, 3, 1, 1), (3, 64, 1, 5), (2, 200, 40, 7)])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_dense(name: str, shape: tuple[int, ...], threads: int) -> None:
    function, expected = MODELS[name]
    model = Model(function).eval()
    delta = deltaconvert.convert(model, config=Config(backend="cpu", threads=threads))
    for frame in clip(*shape):
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-6)
    nodes = delta.stream.program.nodes
    assert [n.about.operator.name for n in nodes[1:]] == expected
    assert all(n.backend == "cpu" for n in nodes)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_something_else_runs_by_its_own_function(name: str) -> None:
    model = Model(OTHERS[name]).eval()
    delta = deltaconvert.convert(model, config=Config(backend="cpu"))
    for frame in clip(2, 5, 4, 6):
        torch.testing.assert_close(delta(frame), model(frame))
    assert "reference" in backends_of(delta).values()


@pytest.mark.parametrize("sizes", [(1, 1), (3, 7), (70, 33), (512, 1000), (2048, 10)])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_layers(sizes: tuple[int, int], lanes: int, threads: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(*sizes), nn.ReLU(),
                          nn.Linear(sizes[1], 5, bias=False)).eval()
    delta = deltaconvert.convert(model, config=Config(backend="cpu", threads=threads))
    for frame in clip(lanes, sizes[0], 6, 5):
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-6)
    kinds = {n.about.operator.name: n.backend for n in delta.stream.program.nodes
             if n.about.operator}
    assert kinds["linear"] == "cpu"


def test_lanes_that_did_not_change_are_not_computed() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    delta = deltaconvert.convert(model, config=Config(backend="cpu"))
    frames = clip(3, 16, 5, 5)
    for frame in frames[:2]:
        delta(frame)
    linear = next(n for n in delta.stream.program.nodes if n.about.operator is not None
                  and n.about.operator.name == "linear")
    work = delta.stream.last[linear.about.name]
    assert (work.candidates, work.scheduled) == (1, 16 * 4)


def test_a_mean_holds_back_what_is_within_its_threshold() -> None:
    conv = nn.Conv2d(8, 8, 1, bias=False)
    conv.weight.data = torch.eye(8)[:, :, None, None]
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv).eval()
    delta = deltaconvert.convert(model, config=Config(backend="cpu", threshold=0.1))
    first = torch.zeros(1, 8, 10, 10)
    before = delta(first)
    small = first.clone()
    small[:, :, 0, 0] = 1  # the mean becomes 0.01
    assert torch.equal(delta(small), before)
    torch.testing.assert_close(delta(first + 1), torch.ones(1, 8, 1, 1))


def test_the_mean_of_a_large_map_is_accurate() -> None:
    x = torch.rand(1, 4, 512, 700, generator=torch.Generator().manual_seed(0)) + 100
    delta = deltaconvert.convert(Model(lambda x: x.mean((2, 3))).eval())
    error = (delta(x) - x.double().mean((2, 3))).abs().max()
    assert float(error) < 1e-4  # 1e-6 of the mean; a plain sum is off by 3e-3
