"""A product of a convolution with constants is that convolution, with other weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaconvert
from tests.passes.graphs import Model, assert_same_outputs, frames_like, specialised

FOLDED = {
    "a number": lambda self, x: self.conv(x) * 0.1,
    "a number in front": lambda self, x: 0.1 * self.conv(x),
    "a number for each channel": lambda self, x: self.scale * self.conv(x),
    "one learnt number": lambda self, x: self.one * self.conv(x),
    "with lanes in its shape": lambda self, x: self.conv(x) * self.scale[None],
    "divided": lambda self, x: self.conv(x) / 3,
    "divided by channels": lambda self, x: self.conv(x) / (self.scale + 4),
    "transposed": lambda self, x: self.up(x) * self.scale,
    "no bias": lambda self, x: self.plain(x) * self.scale,
    "a matrix product of channels": lambda self, x: self.scale * self.linear(
        x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "residual and activation behind it": lambda self, x: F.relu(self.conv(x) * 0.1 + x.flip(1)),
    "a norm in front": lambda self, x: self.norm(self.conv(x)) * self.scale,
    "twice": lambda self, x: self.conv(x) * 2 / self.one,
    "made like the frame": lambda self, x: self.conv(x) * x.new_full((4, 1, 1), 0.25),
    "standardised weights": lambda self, x: self.scale * F.conv2d(x, F.batch_norm(
        self.conv.weight.reshape(1, 4, -1), None, None, training=True).reshape_as(
            self.conv.weight)),
}
REFUSED = {
    "another reader": (lambda self, x: (lambda c: c * 0.1 + c)(self.conv(x)), "has other readers"),
    "a map": (lambda self, x: self.conv(x) * x, "depend on the frame"),
    "a gate": (lambda self, x: self.conv(x) * x.mean((2, 3), keepdim=True), "depend on the frame"),
    "a picture": (lambda self, x: self.conv(x) * self.picture, "not one number for each channel"),
    "of each column": (lambda self, x: self.conv(x) * self.row, "not one number for each channel"),
    "divides a number": (lambda self, x: 1 / (self.conv(x) + 9), None),
    "divides": (lambda self, x: 3 / self.conv(x), "not a multiplication of it"),
    "rounded": (lambda self, x: torch.div(self.conv(x), 3, rounding_mode="floor"),
                "not a multiplication of it"),
    "infinite": (lambda self, x: self.conv(x) * float("inf"), "too large"),
    "divided by 0": (lambda self, x: self.conv(x) / torch.zeros(4, 1, 1), "too large"),
    "broadcast": (lambda self, x: self.narrow(x) * self.scale, "another shape"),
}


def model(function) -> Model:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).eval()
    nn.init.uniform_(norm.weight)
    return Model(function, conv=nn.Conv2d(4, 4, 3, padding=1), plain=nn.Conv2d(4, 4, 1, bias=False),
                 up=nn.ConvTranspose2d(4, 4, 2, 2, groups=2), linear=nn.Linear(4, 4), norm=norm,
                 narrow=nn.Conv2d(4, 1, 1), scale=torch.randn(4, 1, 1), one=torch.randn(1),
                 picture=torch.randn(4, 5, 6), row=torch.randn(6))


@pytest.mark.parametrize("what", FOLDED)
def test_folds(what):
    stages = specialised(model(FOLDED[what]), torch.randn(1, 4, 5, 6))
    assert stages["results"]["fold_factors"].changed
    assert not {"mul", "div"} & set(stages["fold_factors"])
    assert_same_outputs(model(FOLDED[what]), frames_like(2, 4, 5, 6))


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what):
    function, reason = REFUSED[what]
    result = specialised(model(function), torch.randn(1, 4, 5, 6))["results"]["fold_factors"]
    assert not result.changed
    assert [*result.refused.values()] == [] if reason is None else any(
        reason in told for told in result.refused.values())
    assert_same_outputs(model(function), frames_like(2, 4, 5, 6))


@pytest.mark.parametrize("name", ["conv", "plain", "up"])
@pytest.mark.parametrize("factor", [2**-20, 6e4])
def test_refuses_what_float16_would_lose(name, factor):
    """1.5 times 2**-20 has one bit, and 1.5 times 60,000 is infinite, where no product is."""
    dense = model(lambda self, x: getattr(self, name)(x) * self.scale)
    with torch.no_grad():
        getattr(dense, name).weight.uniform_(1, 2)
        dense.scale[:] = 1
        dense.scale[1] = factor
    dense.half()
    frame = torch.full((1, 4, 5, 6), 1e-3, dtype=torch.float16)
    result = specialised(dense, frame)["results"]["fold_factors"]
    assert "too large or too small" in str(result.refused)
    torch.testing.assert_close(deltaconvert.convert(dense, backend="reference")(frame),
                               dense(frame))


def test_a_convolution_called_twice_is_scaled_once_for_each_call():
    twice = model(lambda self, x: self.conv(self.conv(x) * 0.5) * self.scale)
    changed = specialised(twice, torch.randn(1, 4, 5, 6))["results"]["fold_factors"].changed
    assert len(changed) == 2
    assert_same_outputs(twice, frames_like(2, 4, 5, 6))


def test_new_weights_are_scaled_too():
    delta = deltaconvert.convert(model(FOLDED["a number for each channel"]), backend="reference")
    frame = torch.randn(1, 4, 5, 6)
    delta(frame)
    other = model(FOLDED["a number for each channel"])
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    delta.load_state_dict(other.state_dict())
    torch.testing.assert_close(delta(frame), other(frame))


@pytest.mark.parametrize("what", ["a number for each channel", "twice", "a norm in front",
                                  "a matrix product of channels", "transposed",
                                  "made like the frame", "standardised weights"])
def test_in_half_precision_the_weights_are_rounded_once(what):
    factored, frame = model(FOLDED[what]), torch.randn(1, 4, 5, 6)
    found, exact = (_filters(deltaconvert.convert(factored, frame, backend="reference", **options))
                    for options in ({"dtype": "bfloat16"}, {}))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.to(torch.bfloat16))


def _filters(delta):
    """Weights and bias of the one convolution, as one."""
    frames = [torch.randn(1, 4, 5, 6)]
    (node,) = (n for n in delta.program(delta.signature(frames), frames).nodes
               if n.about.function_name.startswith("conv"))
    return torch.cat([a.flatten() for a in node.about.args if isinstance(a, torch.Tensor)])
