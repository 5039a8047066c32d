"""The paper backend: dense at threshold 0, and nothing that it truncates is lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert import DeltaModule
from deltaconvert.backends.paper import kept_maps
from deltaconvert.nodes import DeltaNode

SIZE = (15, 18)
# Sums of 50 rounded float64 deltas of numbers around 1.
CLOSE = {"rtol": 0.0, "atol": 1e-9}


def conv_norm(channels_in: int, channels_out: int, kernel: int = 3, **settings: Any) -> nn.Module:
    """Return a convolution with a BatchNorm whose statistics are not the initial ones."""
    norm = nn.BatchNorm2d(channels_out)
    for numbers in (norm.running_mean, norm.weight.data, norm.bias.data):
        nn.init.normal_(numbers, 0.3, 0.4)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, **settings), norm)


class Residual(nn.Module):
    """Fuses: convolution + norm + residual + activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv_norm(3, 8, stride=2), nn.MaxPool2d(3, 2, 1)
        self.first, self.second = conv_norm(8, 8), conv_norm(8, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.silu(self.stem(x)))
        return self.head(F.leaky_relu(x + self.second(F.relu(self.first(x))), 0.1))


class Unfused(nn.Module):
    """Every value between has a second reader or is an output, so that nothing fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        z = self.norm(y)
        s = y + z
        return y, z, s, F.hardswish(s), torch.sigmoid(z) - 0.5 * s


class Decoder(nn.Module):
    """Concatenation (in place and not), transposed convolution, resizing, padding, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2)
        self.side, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.register_buffer("ramp", torch.randn(2, 2, 14, 18, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.pad(x, (0, 0, -1, 0))
        small = F.relu6(self.down(x))
        joined = torch.cat([self.up(small), F.relu(self.side(x))], 1)
        large = F.interpolate(small, scale_factor=2.0)
        y = self.out(joined) + large
        return F.avg_pool2d(y, 3, 2, 1), torch.cat([x, self.ramp], 1), torch.softmax(y, 1), 1 - y


class Gated(nn.Module):
    """Squeeze and excitation, then a classifier: nodes that read whole lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 2, 1)
        self.excite, self.classify = nn.Conv2d(2, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.conv(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        x = x * torch.sigmoid(gate) * 0.5
        return x * x, F.relu(self.classify(torch.flatten(x.mean((2, 3)), 1)))


class HalfKnown(nn.Module):
    """Operators that the method does not have run by the reference, between its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.second, self.third = nn.Conv2d(8, 4, 3, stride=2), nn.Conv2d(8, 4, 1, stride=2)
        self.after = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.norm(F.relu(self.first(x)))
        half = torch.tanh(self.third(x))
        joined = torch.cat([torch.cumsum(x, 1), F.relu(x)], 1)
        return F.relu(self.second(x)), half, self.after(joined)


MODELS = [Residual, Unfused, Decoder, Gated, HalfKnown]


def make(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return kind().double().eval()


def clip(frames: int, lanes: int = 2, seed: int = 0) -> Iterator[Tensor]:
    """Yield a random walk with local changes; every fifth frame nothing changes at all."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(lanes, 3, *SIZE, generator=generator, dtype=torch.float64)
    for index in range(frames):
        if index % 5 != 4:
            lane, y, x = (int(torch.randint(n, (1,), generator=generator)) for n in (lanes, *SIZE))
            patch = frame[lane, :, y:y + 4, x:x + 4]
            patch += torch.randn(patch.shape, generator=generator, dtype=torch.float64)
        yield frame.clone()


def paper(model: nn.Module, **settings: Any) -> DeltaModule:
    return deltaconvert.convert(model, backend="paper", **settings)


def backends(delta: DeltaModule) -> dict[str, str]:
    assert delta.stream.program is not None
    return {node.about.name: node.backend for node in delta.stream.program.nodes}


@pytest.mark.parametrize("kind", MODELS)
def test_equals_dense_at_threshold_0_over_50_frames(kind: type[nn.Module]) -> None:
    model = make(kind)
    delta = paper(model)
    for frame in clip(50):
        torch.testing.assert_close(delta(frame), model(frame), **CLOSE)


@pytest.mark.parametrize("kind", [Residual, Unfused, Decoder, Gated])
def test_runs_every_node_of_the_method_itself(kind: type[nn.Module]) -> None:
    delta = paper(make(kind))
    delta(next(clip(1)))
    assert set(backends(delta).values()) == {"paper"}


def test_leaves_what_the_method_does_not_have_to_the_reference() -> None:
    delta = paper(make(HalfKnown))
    delta(next(clip(1)))
    assert delta.stream.program is not None
    reasons = {n.about.name: n.fallback_reason for n in delta.stream.program.nodes
               if n.backend == "reference"}
    assert list(reasons) == ["norm", "cumsum"]
    assert all("the published method has no" in reason for reason in reasons.values())


def test_masks_grow_by_the_receptive_field_and_no_further() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)).double()
    delta = paper(model)
    frame = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    delta(frame)
    frame[0, 0, 4, 4] = 1.0
    delta(frame)
    assert [work.pixels_out for work in delta.stream.last.values()] == [1, 9, 25]
    delta(frame)
    assert [work.candidates for work in delta.stream.last.values()][1:] == [0, 0]


def test_a_slow_ramp_gets_through_a_truncating_activation() -> None:
    """A step is a quarter of the threshold: kept back, sent on with the fifth, never lost."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=True), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1, 1))
        model[0].bias.fill_(0.25)
    delta = paper(model, nodes={"*": 0.1})
    sent = []
    for step in range(41):
        frame = torch.full((1, 1, 4, 4), step * 0.025, dtype=torch.float64)
        error = (delta(frame) - model(frame)).abs().amax()
        assert error <= 0.1 + 1e-12
        sent.append(next(reversed(delta.stream.last.values())).pixels_out)
    assert sent[:11] == [16, 0, 0, 0, 0, 16, 0, 0, 0, 0, 16]
    assert (delta(frame) - model(frame)).abs().amax() < 1e-12


def test_the_norm_decides_what_is_kept_back() -> None:
    """One channel of 16 moves by 0.2: the largest is over 0.1, the root mean square is not."""
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Sigmoid()).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[3] = 1.0
    for norm, pixels in (("max", 1), ("rms", 0)):
        delta = paper(model, nodes={"*": 0.1}, norm=norm)
        frame = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
        delta(frame)
        frame[0, 0, 1, 2] = 0.9
        delta(frame)
        assert next(reversed(delta.stream.last.values())).pixels_out == pixels


def test_only_activations_and_sparsify_truncate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)).double()
    delta = paper(model, threshold=1e6)
    for frame in clip(10):
        torch.testing.assert_close(delta(frame), model(frame), **CLOSE)


def test_a_truncating_sparsify_keeps_back_the_same_way() -> None:
    model = nn.Conv2d(1, 1, 1).double()
    delta = paper(model, input_threshold=0.1)
    for step in range(20):
        frame = torch.full((1, 1, 2, 2), step * 0.03, dtype=torch.float64)
        held = frame - delta.stream._state.edges["input_1"].value if step else 0 * frame
        out = delta(frame)
        expected = frame - torch.where(held.abs() <= 0.1, held, torch.zeros_like(held))
        torch.testing.assert_close(out, model(expected), **CLOSE)


def test_values_are_the_sums_of_deltas() -> None:
    """Within the truncation, the value of an edge is what its reader accumulated."""
    delta = paper(make(Residual), threshold=0.05)
    sums: dict[str, Tensor] = {}

    def watch(node: DeltaNode, edge: Any) -> None:
        change = edge.cache.get("paper.delta")
        if change is not None:
            assert not change.any(1)[~edge.mask.bool()].any()
            sums[node.about.name] = sums.get(node.about.name, 0) + change
        torch.testing.assert_close(edge.value, sums[node.about.name], **CLOSE)

    delta.observe(watch)
    for frame in clip(20):
        delta(frame)
    assert len(sums) == 6


@pytest.mark.parametrize("kind", MODELS)
def test_a_lane_does_not_touch_the_other(kind: type[nn.Module]) -> None:
    model = make(kind)
    delta = paper(model, threshold=0.02)
    start = next(clip(1))
    delta(start)
    before = [out.clone() for out in _tuple(delta(start))]
    frame = start.clone()
    frame[1] += 1.0
    after = _tuple(delta(frame))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


@pytest.mark.parametrize("kind", MODELS)
def test_a_lane_that_is_reset_starts_anew_alone(kind: type[nn.Module]) -> None:
    """The other lane keeps what it holds back; the reset one is as exact as a first frame."""
    model = make(kind)
    delta, untouched = paper(model, threshold=0.3), paper(model, threshold=0.3)
    for frame in clip(12):
        delta(frame)
        untouched(frame)
    delta.reset(lanes=[1])
    frame[:, :, 3:8, 3:8] += 1.0  # both lanes, so that the bias has an occasion to enter twice
    outs, others = _tuple(delta(frame)), _tuple(untouched(frame))
    for out, other, dense in zip(outs, others, _tuple(model(frame)), strict=True):
        torch.testing.assert_close(out[1], dense[1], **CLOSE)
        torch.testing.assert_close(out[0], other[0], rtol=0, atol=0)


def test_an_infinity_never_leaves_until_the_lane_is_reset() -> None:
    """What the method is known for; the reference is through with it in the next frame."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    calm = torch.rand(1, 1, 8, 8)
    flash = calm.clone()
    flash[0, 0, 2, 2] = flash[0, 0, 2, 3] = 3e38
    delta, exact = paper(model), deltaconvert.convert(model, backend="reference")
    for frame in (calm, flash, calm):
        out, reference = delta(frame), exact(frame)
    assert not out.isfinite().all()
    torch.testing.assert_close(reference, model(calm))
    delta.reset()
    torch.testing.assert_close(delta(calm), model(calm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_runs_in_any_precision(dtype: torch.dtype) -> None:
    model = make(Residual).to(dtype)
    delta = paper(model)
    exact = copy.deepcopy(model).double()
    for frame in clip(5):
        out = delta(frame.to(dtype))
    assert out.dtype == dtype
    error = (out.double() - exact(frame.to(dtype).double())).abs().amax()
    assert error < 40 * torch.finfo(dtype).eps  # a handful of layers, each a few roundings


def test_counts_the_maps_that_the_method_keeps() -> None:
    delta = paper(make(Residual))
    delta(next(clip(1)))
    program = delta.stream.program
    assert program is not None
    doors = [n for n in program.graph_module.children() if n.about.rule == "densify"]
    counts = {n.about.name: kept_maps(n) for n in (*program.nodes, *doors)}
    assert counts == {"x": 1, "stem_0": 2, "pool": 1, "first_0": 2, "second_0": 2, "head": 0,
                      "densify_head": 1}
    small = 2 * 8 * 4 * 5 * 8  # lanes, channels, height, width, bytes
    stem = 2 * 8 * 8 * 9 * 8
    kept = sum(n for name, n in program.plan.scratch.items() if name.startswith("paper."))
    assert kept == (2 + 1) * stem + (2 + 2) * small
    assert math.isclose(program.plan.nbytes, kept + program.plan.value_bytes, rel_tol=0.1)


def test_streams_share_weights_and_nothing_else() -> None:
    model = make(Residual)
    delta = paper(model)
    other = delta.new_stream()
    for one, two in zip(clip(5, seed=1), clip(5, seed=2), strict=True):
        torch.testing.assert_close(delta(one), model(one), **CLOSE)
        torch.testing.assert_close(other(two), model(two), **CLOSE)


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
