"""Whole networks by the cuda backend, its kernels run on the host: the law, frame by frame."""

from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends import base, cuda
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.backends.cuda.context import Context
from deltaconvert.config import Config
from deltaconvert.errors import FrameError, UnsupportedError
from deltaconvert.nodes import DeltaNode
from deltaconvert.passes.plan_state import Plan
from deltaconvert.state import State
from tests.backends.cpu.sparsify.test_step import LAYOUTS
from tests.backends.cpu.sparsify.test_step import clip as door_clip
from tests.cuda.host.launcher import HostLauncher, compiler
from tests.law.networks import clips, networks
from tests.law.test_law import amounts, run, suite


@pytest.fixture(scope="module", autouse=True)
def _on_the_host():
    """Make ``backend="cuda"`` run on the CPU."""
    compiler()
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda, "create", lambda config, device: CudaBackend(
        config, device, HostLauncher()))
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
    patch.undo()


@suite(8)
@given(data=st.data())
def test_every_node_obeys_the_law_at_every_frame(data):
    network = data.draw(networks())
    clip = data.draw(clips(network.shape))
    run(network, clip, torch.float32, backend="cuda", threshold=data.draw(amounts),
        norm=data.draw(st.sampled_from(["max", "rms"])), input_threshold=data.draw(amounts),
        threshold_unit=data.draw(st.sampled_from(["absolute", "std"])))


class Small(nn.Module):
    """A residual block, a concatenation in place, a gate, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gate, self.head = nn.Conv2d(12, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.a(x))
        x = torch.cat([x, self.b(x)], 1)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return x, self.head(x.mean((2, 3)))


def small_clip(lanes: int = 2) -> list[Tensor]:
    torch.manual_seed(3)
    frames = [torch.rand(lanes, 3, 12, 14)]
    for i in range(3):
        frame = frames[-1].clone()
        frame[i % lanes, :, 2 + i:5 + i, 4:7] = torch.rand(3, 3, 3)
        frames.append(frame)
    return frames


def edges_of(delta: Any) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (edge.value.clone(), edge.mask.clone())
            for name, edge in delta.stream._state.edges.items()}


@pytest.mark.parametrize("settings", [
    {}, {"input_threshold": 0.05}, {"input_threshold": 0.05, "norm": "rms"},
    {"input_threshold": 0.03, "input_test": "block"},
    {"input_threshold": 0.03, "input_test": "block", "norm": "rms", "input_cap": 0.2},
], ids=["exact", "max", "rms", "block", "block rms"])
@pytest.mark.parametrize("layout", ["interleaved", "crop"])
def test_the_door_in_is_the_references(settings, layout):
    model = nn.Conv2d(3, 1, 1)
    ours, oracle = (deltaconvert.convert(model, backend=name, **settings)
                    for name in ("cuda", "reference"))
    for frame in door_clip():
        for delta in (ours, oracle):
            delta(LAYOUTS[layout](frame))
        (value, mask), (expected, expected_mask) = (
            next(iter(edges_of(d).values())) for d in (ours, oracle))
        assert torch.equal(mask, expected_mask)
        assert torch.equal(value, expected)


@pytest.mark.parametrize("settings", [{}, {"input_threshold": 0.05},
                                      {"input_threshold": 0.05, "norm": "rms"}],
                         ids=["exact", "max", "rms"])
@pytest.mark.parametrize("size", [5, 700])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_frame_that_is_no_map_comes_in_lane_by_lane(settings, size, gaps):
    ours, oracle = (deltaconvert.convert(nn.Conv3d(3, 2, 1), backend=name, **settings)
                    for name in ("cuda", "reference"))
    frame = torch.rand(2, 3, 4, 2, size, generator=torch.Generator().manual_seed(0))
    for step, lane in ((0.0, 0), (0.0, 0), (0.04, 1), (0.04, 1), (0.3, 0), (3.0, 1)):
        frame = frame.clone()
        frame[lane, 2, 3, 1, -1] += step
        for delta in (ours, oracle):
            delta(frame.transpose(1, 2).contiguous().transpose(1, 2) if gaps else frame)
        found, expected = (next(iter(edges_of(d).values())) for d in (ours, oracle))
        assert all(map(torch.equal, found, expected))
    assert {n.backend for n in ours.stream.program.nodes} == {"cuda"}
    frame[1, 0, 0, 0, 0] = torch.nan
    before = next(iter(edges_of(ours).values()))[0]
    ours(frame)
    with pytest.raises(deltaconvert.FrameError, match=r"lanes \[1\]"):
        ours(torch.zeros_like(frame))
    after = next(iter(edges_of(ours).values()))[0]
    assert torch.equal(after, before)


def test_a_frame_with_its_channels_last_is_compared_pixel_by_pixel():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = (x / 2 - 0.1).permute(0, 3, 1, 2)
            return self.head(self.stem(x).permute(0, 2, 3, 1))

    model = Last()
    delta = deltaconvert.convert(model, backend="cuda")
    for frame in small_clip():
        frame = frame.permute(0, 2, 3, 1).contiguous()
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-4, atol=1e-5)
    mask = delta.stream._state.edges["x"].mask
    assert mask.shape == (2, 12, 14)
    assert int(mask.sum()) == 9


def test_all_nodes_run_here_and_outputs_are_copies():
    model = Small()
    delta = deltaconvert.convert(model, backend="cuda")
    first = delta(small_clip()[0])
    kept = [t.clone() for t in first]
    for frame in small_clip():
        for out, wanted in zip(delta(frame), model(frame), strict=True):
            torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert {n.backend for n in delta.stream.program.nodes} == {"cuda"}


def test_work_is_counted_as_the_reference_counts_it():
    deltas = [deltaconvert.convert(Small(), backend=name) for name in ("cuda", "reference")]
    for frame in [*small_clip(), small_clip()[-1]]:
        for delta in deltas:
            delta(frame)
        ours, oracle = (delta.stream.last for delta in deltas)
        assert ours.keys() == oracle.keys()
        for name, work in oracle.items():
            mine = ours[name]
            for what in ("frames", "pixels_out", "total_out", "total_in", "dense", "pixels_in"):
                assert getattr(mine, what) == getattr(work, what), (name, what)
    assert sum(work.pixels_out for work in deltas[0].stream.last.values()) == 0
    total, stem = deltas[0].stream.totals["stem"], deltas[1].stream.totals["stem"]
    assert (total.frames, total.candidates, total.needed) == (5, stem.candidates, stem.needed)
    assert total.scheduled >= total.needed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_refused_lane_keeps_its_values_and_the_others_go_on(bad):
    model = Small()
    delta = deltaconvert.convert(model, backend="cuda")
    frames = small_clip()
    first = delta(frames[0])
    broken = frames[1].clone()
    broken[1, 2, 0, 0] = bad
    out = delta(broken)
    assert torch.equal(out[0][1], first[0][1])
    torch.testing.assert_close(out[0][0], model(frames[1])[0][0], rtol=1e-4, atol=1e-5)
    with pytest.raises(FrameError, match=r"lanes \[1\].*NaN or infinite|NaN or infinite \(lanes"):
        delta(frames[2])
    delta.stream.check()  # it was said once
    torch.testing.assert_close(delta(frames[2])[0], model(frames[2])[0], rtol=1e-4, atol=1e-5)


def test_a_first_frame_that_is_refused_is_followed_by_a_first_frame():
    model = Small()
    delta = deltaconvert.convert(model, backend="cuda", threshold=0.1)
    frames = small_clip()
    broken = frames[0].clone()
    broken[0, 0, 3, 3] = math.nan
    delta(broken)
    with pytest.raises(FrameError, match=r"lanes \[0\]"):
        delta.stream.check()
    torch.testing.assert_close(delta(frames[0])[0], model(frames[0])[0], rtol=1e-4, atol=1e-5)


def test_reset_of_a_lane():
    delta = deltaconvert.convert(Small(), backend="cuda", nodes={"*": 0.5})
    frames = small_clip()
    delta(frames[0])
    delta.reset(lanes=[1])
    delta(frames[1])
    masks = edges_of(delta)["stem"][1].bool()
    assert masks[1].all()
    assert not masks[0].all()


def test_half_precision_stays_near_the_dense_network():
    model = Small().bfloat16()
    delta = deltaconvert.convert(model, backend="cuda")
    for frame in small_clip():
        for out, wanted in zip(delta(frame.bfloat16()), model(frame.bfloat16()), strict=True):
            torch.testing.assert_close(out, wanted, rtol=5e-2, atol=5e-2)


def test_nodes_without_a_kernel_run_whole_on_the_device():
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(x.abs()).flip(2) * 2

    delta = deltaconvert.convert(Odd(), backend="cuda")
    for frame in small_clip():
        torch.testing.assert_close(delta(frame), Odd()(frame))
    kinds = {n.about.name: delta.stream.program.weights[n.about.name].kind
             for n in delta.stream.program.nodes}
    assert "whole" in kinds.values()


class Dense(nn.Module):
    """A dense block: each layer reads all that is before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(5))
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.first(x)]
        for layer in self.layers:
            maps.append(torch.relu(layer(torch.cat(maps, 1))))
        return torch.cat(maps, 1)


def test_unions_of_a_dense_block_go_on_from_those_before():
    delta, model = deltaconvert.convert(Dense(), backend="cuda"), Dense()
    for frame in small_clip():
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-4, atol=1e-5)
    state = delta.stream._state
    unions = [launch for name, step in state.steps.items() for launch in step.launches
              if launch.kernel.entry == "unite_masks"]
    assert [launch.args.sources for launch in unions] == [1, 2, 2, 2, 2, 2]
    for name, (_, mask) in edges_of(delta).items():
        if name.startswith("cat"):
            node = next(n for n in delta.stream.program.nodes if n.about.name == name)
            wanted = [state.edges[spec.name].mask for spec in node.about.inputs]
            assert torch.equal(mask, torch.stack(wanted).amax(0)), name


class Pooled(nn.Module):
    """Each way of pooling to one pixel."""

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(x)
        return (nn.functional.adaptive_avg_pool2d(x, 1), x.mean((2, 3)),
                x.mean((-1, -2), keepdim=True))


# More channels than threads, and an odd number of them; fewer pixels than blocks, and more.
@pytest.mark.parametrize("size", [(40, 13, 18), (37, 3, 5), (2072, 2, 3), (8, 70, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pooling_to_one_pixel(size, dtype):
    delta = deltaconvert.convert(Pooled(), backend="cuda")
    torch.manual_seed(0)
    frame = torch.randn(2, *size, dtype=dtype)
    for lane in (None, 1, 0, None):
        if lane is not None:
            frame = frame.clone()
            frame[lane, :, :2, 1:3] += 1
        for out, wanted in zip(delta(frame), Pooled()(frame.float()), strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 1e-3
            torch.testing.assert_close(out.float(), wanted, rtol=tolerance, atol=tolerance)
    program = delta.stream.program
    kinds = [program.weights[n.about.name].kind for n in program.nodes]
    assert kinds.count("pooling") == 3


def test_a_small_change_of_a_mean_is_held_back():
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True)

    delta = deltaconvert.convert(Gated(), backend="cuda", nodes={"mean": 1e-2})
    frame = torch.rand(1, 8, 6, 5)
    first = delta(frame)
    frame = frame.clone()
    frame[0, :, 2, 2] += 0.1  # a thirtieth of that in the mean
    changed = (delta(frame) != first).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 2]]
    assert (delta(frame + 0.1) != first).all()


def test_what_is_no_float_is_run_by_the_backend():
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).argmax(1)

    model = Labels()
    delta = deltaconvert.convert(model, backend="cuda")
    for frame in small_clip():
        assert torch.equal(delta(frame), model(frame))
    node = next(n for n in delta.stream.program.nodes if n.about.name == "argmax")
    assert (node.backend, node.fallback_reason) == ("cuda", "")
    assert delta.stream._state.runner.no_graph == "not on a GPU"


def test_two_streams_share_weights_and_nothing_else():
    model = Small()
    delta = deltaconvert.convert(model, backend="cuda")
    other, frames = delta.new_stream(), small_clip()
    for i in range(3):
        torch.testing.assert_close(delta(frames[i])[0], model(frames[i])[0], rtol=1e-4, atol=1e-5)
        back = frames[3 - i]
        torch.testing.assert_close(other(back)[0], model(back)[0], rtol=1e-4, atol=1e-5)
    assert delta.stream.program is other.program


def test_the_model_is_left_alone():
    model = Small()
    before = copy.deepcopy(model.state_dict())
    deltaconvert.convert(model, backend="cuda")(small_clip()[0])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# Which backend ``auto`` is, and what is said where this one cannot run.


def test_auto_is_cpu_on_a_cpu():
    assert base.choose(torch.device("cpu")) == ("cpu", "")


def test_auto_says_why_it_is_not_fast(monkeypatch):
    monkeypatch.setattr(base, "choose", lambda device: ("reference", "CuPy is missing"))
    with pytest.warns(UserWarning, match="'auto' is reference, which is not made.*CuPy is miss"):
        assert base.create("auto", Config(), torch.device("cpu")).name == "reference"


def test_out_of_memory_names_the_bytes_and_the_way_out(monkeypatch):
    def allocate(plan, device):
        raise torch.OutOfMemoryError("of what it needs, the allocator says")

    monkeypatch.setattr(Plan, "allocate", allocate)
    with pytest.raises(UnsupportedError, match=r"2 lanes needs \d+ MB .*Run fewer lanes"):
        deltaconvert.convert(Small(), backend="cuda")(small_clip()[0])


def test_out_of_memory_within_a_frame_names_them_too(monkeypatch):
    def evaluate(node, *values):
        raise torch.OutOfMemoryError("of what the operator needs, the allocator says")

    model, frame = Small(), small_clip()[0]
    delta = deltaconvert.convert(model, frame, backend="cuda")
    with monkeypatch.context() as short:
        short.setattr(DeltaNode, "evaluate", evaluate)
        with pytest.raises(UnsupportedError, match=r"2 lanes needs \d+ MB .*Run fewer lanes"):
            delta(frame)
    for found, wanted in zip(delta(frame), model(frame), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_auto_falls_back_with_the_reason(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda device: "CuPy is missing")
    assert base.choose(torch.device("cuda", 0)) == ("reference", "CuPy is missing")
    monkeypatch.setattr(cuda, "unavailable", lambda device: "")
    assert base.choose(torch.device("cuda", 0)) == ("cuda", "")


def test_unavailable_on_a_cpu_says_what_to_do():
    assert "move model and frames to a CUDA device" in cuda.unavailable(torch.device("cpu"))


def test_a_gpu_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    assert cuda.unavailable(torch.device("cuda", 7)) == (
        "an old card has compute capability 7.0; the kernels need 7.5")


def test_asked_for_where_it_cannot_run():
    with pytest.raises(UnsupportedError, match="backend='cuda' cannot run: the frames are on cpu"):
        _create(Config(), torch.device("cpu"))


def _create(config, device):
    """`cuda.create` as it is without this file's fixture."""
    spec = importlib.util.find_spec("deltaconvert.backends.cuda")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.create(config, device)


def test_a_context_has_room_for_what_it_counts():
    context = Context(State(3, [True] * 3), torch.device("cpu"), HostLauncher(), 5)
    assert [context.count(2), context.count(), context.count(2)] == [0, 2, 3]
    assert context.counters.numel() % 4 == 0
    assert context.counters.numel() >= context.counted == 5
