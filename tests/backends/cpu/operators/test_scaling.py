"""Norms and constants that no convolution took in are compiled, and are what PyTorch computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from deltaconvert.backends.cpu.operators import elementwise
from tests.passes.graphs import Model, frames_like, program_of, trained_norm

SCALINGS = {
    "norm": lambda self, x: self.norm(x),
    "norm and activation": lambda self, x: F.silu(self.norm(x)),
    "norm without weights": lambda self, x: F.batch_norm(x, self.norm.running_mean,
                                                         self.norm.running_var),
    "product": lambda self, x: self.scale * x,
    "product with lanes": lambda self, x: x * self.scale[None],
    "product with one": lambda self, x: x * self.one,
    "quotient": lambda self, x: x / (self.scale + 4),
    "quotient of a number": lambda self, x: x / 3,
    "sum with a number": lambda self, x: F.relu(1 - x),
    "sum": lambda self, x: F.relu(x + self.scale),
    "scaled sum": lambda self, x: torch.add(x, self.scale, alpha=0.3),
    "scaled sum, the other way": lambda self, x: torch.add(self.scale, x, alpha=0.3),
    "difference": lambda self, x: x - self.scale,
    "difference, the other way": lambda self, x: self.scale - x,
    "scaled difference": lambda self, x: torch.sub(self.scale, x, alpha=0.3),
    "whole numbers": lambda self, x: x * self.counts,
}
OTHERS = {
    "a picture": lambda self, x: x * self.picture,
    "a column": lambda self, x: x + self.picture[0, 0],
    "a constant over the map": lambda self, x: self.scale / (x + 9),
    "rounded": lambda self, x: torch.div(x, self.scale + 4, rounding_mode="floor"),
    "quotient of next to nothing": lambda self, x: x / 1e-40,
    "more channels": lambda self, x: x[:, :1] * self.scale,
}


def model(function) -> Model:
    torch.manual_seed(0)
    made = Model(function, norm=trained_norm(19), scale=torch.randn(19, 1, 1), one=torch.randn(1),
                 picture=torch.randn(1, 19, 6, 7))
    made.register_buffer("counts", torch.arange(1, 20).view(19, 1, 1))
    return made


def loops_that_run(delta: deltaconvert.DeltaModule) -> list[bool]:
    """Whether the loops know each local node as elementwise."""
    return [elementwise.refusal(node) is None for node in program_of(delta).nodes
            if node.about.rule == "local" and node.about.operator.name != "select"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("what", SCALINGS)
def test_are_compiled(what, threads):
    dense = model(SCALINGS[what])
    delta = deltaconvert.convert(dense, backend="cpu", threads=threads)
    exact = model(SCALINGS[what]).double()
    for frame in frames_like(3, 19, 6, 7):
        torch.testing.assert_close(delta(frame.float()).double(), exact(frame), rtol=1e-6,
                                   atol=2e-6)
    assert loops_that_run(delta) == [True]


@pytest.mark.parametrize("what", SCALINGS)
def test_in_bfloat16_as_pytorch(what):
    """Within two roundings: PyTorch rounds between the norm and the activation."""
    dense = model(SCALINGS[what]).bfloat16()
    delta = deltaconvert.convert(dense, backend="cpu")
    for frame in frames_like(2, 19, 6, 7):
        torch.testing.assert_close(delta(frame.bfloat16()), dense(frame.bfloat16()),
                                   rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("what", OTHERS)
def test_others_run_as_before(what):
    dense = model(OTHERS[what])
    delta = deltaconvert.convert(dense, backend="cpu")
    for frame in frames_like(2, 19, 6, 7):
        torch.testing.assert_close(delta(frame.float()), dense(frame.float()))
    assert False in loops_that_run(delta)


def test_a_module_of_its_own_in_front_of_the_network():
    """A picture's mean and deviation, as many models have them inside."""
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv((x - self.mean) / self.std)

    dense = Normalised().eval()
    delta = deltaconvert.convert(dense, backend="cpu")
    for frame in frames_like(1, 3, 9, 8):
        torch.testing.assert_close(delta(frame.float()), dense(frame.float()))
    assert loops_that_run(delta)[:2] == [True, True]
