"""What a file of this folder holds about one operator, and how it is checked.

A file is named as the operator and holds tables: ``VALUES``, hand-made cases of small
integers; ``SPELLINGS``, groups of models that all mean the same call; ``FOOTPRINTS``, models
whose taps are found out by trying. Where several operators share a file in
``deltaconvert/operators``, the file of that name may hold ``OPERATORS`` instead: `Cases` by the
name of the operator.
`test_every_operator.py` finds them and runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.trace import private_copy
from tests.law.steps import Call

__all__ = ["Call", "Cases", "Group", "Tried", "Value", "conv", "maps", "whole"]


class One(nn.Module):
    """A step as a whole model: tracing goes by the names in ``forward``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Two(One):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(x, y)


class Three(One):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(x, y, z)


def whole(model: nn.Module, inputs: Sequence[Any]) -> nn.Module:
    """A copy of a step as a model of that many inputs, in eval mode."""
    return (One, Two, Three)[len(inputs) - 1](private_copy(model)).eval()


def maps(*rows: Any) -> Tensor:
    """One lane of maps out of nested lists: ``[H][W]`` a channel."""
    return torch.tensor(rows, dtype=torch.float32)[None]


@dataclass(frozen=True)
class Value:
    """A model, its inputs, and what comes out, worked out by hand."""

    title: str
    model: nn.Module
    inputs: Sequence[Tensor]
    expected: Tensor
    tolerance: float = 0.0


@dataclass(frozen=True)
class Group:
    """Models that mean one call of the operator with the same settings, on such inputs."""

    shapes: Sequence[tuple[int, ...]]
    models: dict[str, nn.Module]
    others: Sequence[str] = ()  # operators beside it in the program
    becomes: str = ""  # the operator to be found, where this one is a constant of it


@dataclass(frozen=True)
class Tried:
    """A model of one operator on such inputs; ``generic`` if every tap can be seen to count."""

    model: nn.Module
    shapes: Sequence[tuple[int, ...]]
    generic: bool = True


@dataclass(frozen=True)
class Cases:
    """The tables of one operator among several in a file."""

    VALUES: Sequence[Value]
    SPELLINGS: Sequence[Group]
    FOOTPRINTS: Sequence[Tried] = field(default_factory=list)


def conv(kind: type[nn.Module], weight: Tensor, bias: Sequence[float] | None = None,
         **settings: Any) -> nn.Module:
    """A convolution with weights ``[C_out, C_in / groups, kh, kw]`` (transposed: as PyTorch's)."""
    groups = settings.get("groups", 1)
    first, second = weight.shape[0], weight.shape[1] * groups
    if kind is nn.Conv2d:
        first, second = second, first
    module = kind(first, second, tuple(weight.shape[2:]), bias=bias is not None, **settings)
    module.weight.data = weight.clone()
    if bias is not None:
        module.bias.data = torch.tensor(bias)
    return module


def only_node(model: nn.Module, name: str, frames: Sequence[Tensor], others: Sequence[str] = (),
              **config: Any) -> DeltaNode:
    """Convert, and return the one node of that operator; there is no other but ``others``."""
    delta = deltaconvert.convert(model, frames, **config)
    program = delta.program(delta.signature(frames), frames)
    nodes = [n for n in program.nodes if n.about.rule != "sparsify"]
    names = [n.about.operator.name if n.about.operator else n.about.reason for n in nodes]
    assert sorted(names) == sorted([name, *others]), f"{model} became {names}"
    return nodes[names.index(name)]


def check_value(case: Value, backend: str, dtype: torch.dtype) -> None:
    """Reach the case by a first frame in one lane, by a change in the other; then leave it."""
    model = whole(case.model, case.inputs).to(dtype)
    delta = deltaconvert.convert(model, backend=backend)
    inputs = [x.to(dtype) for x in case.inputs]
    blank = [torch.zeros_like(x) for x in inputs]
    expected = case.expected.to(dtype)
    for lanes in (["case", "blank"], ["case", "case"], ["blank", "case"], ["case", "case"]):
        frames = [torch.cat([x if lane == "case" else o for lane in lanes])
                  for x, o in zip(inputs, blank, strict=True)]
        out = delta(*frames)
        assert out.dtype == dtype
        for got, lane in zip(out, lanes, strict=True):
            if lane == "case":
                torch.testing.assert_close(got[None], expected, rtol=0, atol=case.tolerance)


def check_group(group: Group, name: str) -> None:
    """All spellings become the same call of the operator, and compute what they did."""
    seen = {}
    for label, step in group.models.items():
        model = whole(step, group.shapes)
        frames = [torch.randn(s) for s in group.shapes]
        node = only_node(model, group.becomes or name, frames, group.others)
        seen[label] = repr(sorted(node.about.params.items()))
        delta = deltaconvert.convert(model)
        for _ in range(2):
            with torch.no_grad():
                dense = model(*(f.clone() for f in frames))
            torch.testing.assert_close(
                delta(*frames), dense, rtol=1e-5, atol=1e-6, equal_nan=True,
                msg=lambda m, label=label: f"{label}: {m}")
            frames[0] = frames[0].clone()
            frames[0][..., :1, :2] += 1
    assert len(set(seen.values())) == 1, f"the settings differ: {seen}"


def check_footprint(tried: Tried, name: str) -> None:
    """Change one input pixel at a time; see which output pixels follow."""
    torch.manual_seed(0)
    frames = [torch.randn(s, dtype=torch.float64) for s in tried.shapes]
    node = only_node(whole(tried.model, tried.shapes).double(), name, frames, backend="reference")
    assert node.about.rule == "local", node.about.reason
    for number, footprint in enumerate(node.about.footprints):
        compare_taps(node, frames, number, footprint, tried.generic)


def compare_taps(node: DeltaNode, values: Sequence[Tensor], number: int, footprint: Any,
                 generic: bool) -> None:
    base = node.evaluate(*values)
    height, width = values[number].shape[2:]
    for y in range(height):
        for x in range(width):
            mask = torch.zeros(1, height, width, dtype=torch.uint8)
            mask[0, y, x] = 1
            found = footprint.candidates(mask)[0]
            followed = torch.zeros_like(found)
            for amount in (100.0, -100.0):  # a maximum follows what grows
                changed = [v.clone() for v in values]
                changed[number][..., y, x] += amount * (1 + torch.rand(values[number].shape[1]))
                followed |= (node.evaluate(*changed) != base).any(1)[0]
            assert not (followed & ~found).any(), (
                f"{node.about.name}, input {number}: ({y}, {x}) reaches "
                f"{(followed & ~found).nonzero().tolist()}, no candidates")
            assert not generic or torch.equal(followed, found), (
                f"{node.about.name}, input {number}: ({y}, {x}) has the candidates "
                f"{(found & ~followed).nonzero().tolist()} that it does not reach")
