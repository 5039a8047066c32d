"""A formula that multiplies the channels of a map by a matrix is a convolution of 1x1."""

from __future__ import annotations

import pytest
import torch

import deltaconvert
from tests.passes.graphs import Model, assert_same_outputs, frames_like, program_of, specialised

FOUND = {
    "in full": lambda self, x: torch.einsum("nchw,oc->nohw", x, self.matrix),
    "an ellipsis": lambda self, x: torch.einsum("oi, ...ihw -> ...ohw", self.matrix, x),
    "an ellipsis for all places": lambda self, x: torch.einsum("a...,ba->b...", x[0], self.matrix)
    [None] + torch.einsum("nc...,oc->no...", x, self.matrix),
    "turned": lambda self, x: torch.einsum("nchw,co->nohw", x, self.matrix.T),
}
LEFT = {
    "the matrix depends on the frame": lambda self, x: torch.einsum(
        "nchw,oc->nohw", x, self.matrix * x.amax()),
    "over rows": lambda self, x: torch.einsum("nchw,oh->ncow", x, self.rows),
    "moved": lambda self, x: torch.einsum("nchw,oc->nowh", x, self.matrix),
    "the sum of the matrix": lambda self, x: torch.einsum("nchw,oi->nohw", x, self.matrix),
    "a number a channel": lambda self, x: torch.einsum("nchw,c->nchw", x, self.matrix[0]),
    "a matrix a lane": lambda self, x: torch.einsum("nchw,nc->nchw", x, self.matrix[:1, :3]),
    "a column that is repeated": lambda self, x: torch.einsum(
        "nchw,oc->nohw", x, self.matrix[:, :1]),
    "capitals first": lambda self, x: torch.einsum("nCHW,oC", x, self.matrix).permute(2, 3, 0, 1),
    "of whole numbers": lambda self, x: torch.einsum(
        "nchw,oc->nohw", x.long(), self.matrix.long()).to(x),
}


def model(function) -> Model:
    generator = torch.Generator().manual_seed(0)
    return Model(function, matrix=torch.randn(5, 3, generator=generator),
                 rows=torch.randn(4, 6, generator=generator))


@pytest.mark.parametrize("name", FOUND)
def test_it_becomes_a_convolution(name):
    stages = specialised(model(FOUND[name]), torch.randn(1, 3, 6, 7))
    assert stages["results"]["find_convolutions"].changed
    assert "conv2d" in stages["find_convolutions"]
    assert_same_outputs(model(FOUND[name]), frames_like(2, 3, 6, 7))


@pytest.mark.parametrize("name", LEFT)
def test_it_is_left(name):
    stages = specialised(model(LEFT[name]), torch.randn(1, 3, 6, 7))
    assert "einsum" in stages["partition"]
    assert "conv2d" not in stages["partition"]
    assert_same_outputs(model(LEFT[name]), frames_like(1, 3, 6, 7))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_same_on_the_cpu_backend(dtype):
    dense = model(FOUND["an ellipsis"])
    delta, plain = (deltaconvert.convert(dense, dtype=dtype, backend=name)
                    for name in ("cpu", "reference"))
    tolerance = 1e-5 if dtype is None else 2**-7
    for frame in frames_like(2, 3, 12, 16):
        torch.testing.assert_close(delta(frame.float()), plain(frame.float()), rtol=tolerance,
                                   atol=tolerance)
    assert [n.backend for n in program_of(delta).nodes] == ["cpu", "cpu"]
