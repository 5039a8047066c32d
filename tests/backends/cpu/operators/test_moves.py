"""Nodes that only move numbers between maps and tokens, as the heads of detectors do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cpu.frames.steps import CompiledStep
from deltaconvert.checking.law import LawChecker

SHAPES = [(1, 3, 9, 13), (2, 3, 16, 24), (2, 3, 40, 52), (3, 3, 5, 1)]


class Head(nn.Module):
    """Two maps of 12 channels, one at half the size, and what becomes of them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.fine, self.coarse = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 3, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fine(x), self.coarse(x))


def tokens(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a.flatten(2), b.flatten(2)], 2)


def split(a: Tensor, b: Tensor) -> Any:
    """Some channels as four maps of rows, and the others."""
    sides, others = tokens(a, b).split((8, 4), 1)
    return sides.view(sides.shape[0], 4, 2, -1).transpose(2, 1) * 2, others


def joined_twice(a: Tensor, b: Tensor) -> Any:
    """A map that lies in a concatenation, so that its pixels are further apart."""
    return torch.cat([a, a * 2], 1), tokens(a, b)


def regrouped(a: Tensor, b: Tensor) -> Any:
    """Tokens of half the channels: a view, unless the map lies in a concatenation."""
    halves = a.permute(0, 2, 3, 1).reshape(a.shape[0], -1, 6)
    return halves.transpose(1, 2), torch.cat([a, a.sigmoid()], 1)


MODELS = {
    "maps joined to tokens": tokens,
    "with views, in another order": lambda a, b: torch.cat(
        [b.view(b.shape[0], 12, -1), a.view(a.shape[0], 12, -1), b.reshape(len(b), 12, -1)], -1),
    "joined along channels": lambda a, b: torch.cat([a.flatten(2), a.flatten(2).flip(1)], 1),
    "one map": lambda a, b: a.flatten(2),
    "tokens of a map": lambda a, b: a.flatten(2).transpose(1, 2),
    "split and transposed": split,
    "in a concatenation": joined_twice,
    "a copy in a concatenation": regrouped,
}
# Those all of whose nodes that run whole are views.
COMPILED = {"maps joined to tokens", "with views, in another order", "one map",
            "split and transposed", "in a concatenation"}


def frames(shape: tuple[int, ...], count: int = 7) -> list[Tensor]:
    """Frames of which a corner of the last lane changes, nothing, or all."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random)
    made = [x]
    for time in range(1, count):
        x = x.clone()
        if time == 5:
            x = torch.randn(shape, generator=random)
        elif time % 3:
            x[-1, :, :3, :2] = torch.randn(x[-1, :, :3, :2].shape, generator=random)
        made.append(x)
    return made


def moves_of(delta: Any) -> list[Any]:
    """Return the steps of nodes that run whole."""
    stream = delta.stream
    return [stream._state.steps[n.about.name] for n in stream.program.nodes
            if n.about.rule == "global"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_dense(name: str, shape: tuple[int, ...], threads: int) -> None:
    model = Head(MODELS[name]).eval()
    delta = deltaconvert.convert(model, backend="cpu", threads=threads)
    for frame in frames(shape):
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_keeps_the_law_and_runs_with_the_steps_around_it(name: str, dtype: Any) -> None:
    shape = SHAPES[2]
    delta = deltaconvert.convert(Head(MODELS[name]).eval(), backend="cpu", threads=2, dtype=dtype,
                                 threshold=0.05)
    checker = LawChecker(delta)
    delta.observe(checker)
    for frame in frames(shape):
        frame = frame if dtype is None else frame.bfloat16().float()
        checker.begin(frame)
        delta(frame)
    assert not checker.breaches, checker.breaches[0]
    compiled = [isinstance(step, CompiledStep) for step in moves_of(delta)]
    assert compiled
    assert name not in COMPILED or all(compiled)


def test_counts_what_changed() -> None:
    """The pixels of a map that tokens became, and the lanes of tokens."""
    delta = deltaconvert.convert(Head(split).eval(), backend="cpu")
    still = frames(SHAPES[1])[0]
    moved = still.clone()
    moved[1, :, 4, 5] += 1
    delta(still)
    state = delta.stream._state
    delta(moved)
    counts = {n.about.function_name: state.edges[n.about.name].counts
              for n in delta.stream.program.nodes if n.about.rule == "global"}
    reached = 9 + 4  # of both maps, by a window of 3 by 3
    assert [0, 1] in counts.values()
    assert any(0 < c[1] <= 4 * reached and c[0] == 0 for c in counts.values() if c != [0, 1])
    delta(moved)
    assert not any(any(state.edges[n.about.name].counts) for n in delta.stream.program.nodes)


def test_heals_and_starts_lanes_anew() -> None:
    model = Head(split).eval()
    delta = deltaconvert.convert(model, backend="cpu")
    first, *others = frames(SHAPES[1])
    delta(first)
    delta(torch.full_like(first, 3e38))  # infinities and NaN
    for frame in others:
        delta.reset([1])
        with torch.no_grad():
            torch.testing.assert_close(delta(frame), model(frame), rtol=1e-5, atol=1e-5)
