"""Drift is a bug: frame 10,000 is as good as frame 10."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from tests.law.checking import Law
from tests.law.steps import norm_layer, same_size


class Small(nn.Module):
    """Two convolutions with norms, an add, a concatenation, a gate: what accumulated elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = same_size(2, 6), norm_layer(6)
        self.second, self.gate = same_size(6, 6), nn.Conv2d(6, 6, 1)
        self.last = nn.Conv2d(12, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.first(x)))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        return self.last(torch.cat([x, F.relu(x + self.second(x))], 1))


def long_clip(frames: int) -> Iterator[Tensor]:
    """Yield frames; numbers of very different size come and go, which is what sums never forget."""
    generator = torch.Generator().manual_seed(4)
    frame = torch.randn(1, 2, 9, 11, generator=generator)
    for time in range(1, frames + 1):
        top, left = time * 5 % 8, time * 7 % 10
        frame[..., top:top + 2, left:left + 2] = (
            torch.randn(1, 2, 2, 2, generator=generator) * (100 if time % 50 == 0 else 1))
        yield frame


@pytest.mark.parametrize("model_dtype, dtype", [(torch.float32, "bfloat16"),
                                                (torch.bfloat16, None)])
def test_in_bfloat16_every_frame_is_what_a_first_frame_would_be(model_dtype, dtype):
    torch.manual_seed(3)
    model = Small().eval().to(model_dtype)
    delta = deltaconvert.convert(model, backend="cpu", dtype=dtype)
    lowered, exact = copy.deepcopy(model).bfloat16(), copy.deepcopy(model).double()
    ours, dense = [], []
    for time, frame in enumerate(long_clip(300)):
        frame = frame.to(model_dtype)
        out = delta(frame)
        if time % 20 == 0 or time >= 290:
            assert torch.equal(out, delta.new_stream()(frame)), f"frame {time}"
            with torch.no_grad():
                wanted = exact(frame.double())
                ours.append(float((out - wanted).square().mean()))
                dense.append(float((lowered(frame.bfloat16()) - wanted).square().mean()))
    assert sum(ours) <= sum(dense), "a dense evaluation in bfloat16 is nearer"
    assert sum(ours[-10:]) <= 2 * sum(dense[-10:])


@pytest.mark.slow
@pytest.mark.parametrize("backend, threshold, frames", [
    ("cpu", 0.0, 10_000), ("cpu", 0.05, 10_000), ("reference", 0.0, 1_000)])
def test_the_last_frame_is_as_good_as_frame_10(backend, threshold, frames):
    torch.manual_seed(3)
    model = Small().eval()
    delta = deltaconvert.convert(model, backend=backend, nodes={"*": threshold})
    law, exact = Law(), copy.deepcopy(model).double()
    errors = {}
    for time, frame in enumerate(long_clip(frames), 1):
        if time in (10, frames):
            delta.observe(law)
            law.expect({"x": frame}, [False])
        out = delta(frame)
        if time in (10, frames):
            delta.observe(None)
            law.before.clear()
            with torch.no_grad():
                wanted = exact(frame.double())
                once = float((model(frame) - wanted).abs().max())
            errors[time] = float((out - wanted).abs().max()) / once
    if threshold == 0:
        assert all(error <= 4 for error in errors.values()), (
            f"in units of one dense evaluation's error: {errors}")
    assert law.checked == 2 * len(delta.stream.program.nodes)
