"""The cuda backend on a GPU: every kernel against the reference, and whole networks.

``make test-gpu`` runs these; anywhere else they are skipped, by name.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cuda import break_even, dense, unavailable
from deltaconvert.backends.rule import change_norm
from deltaconvert.errors import FrameError
from deltaconvert.nodes import DeltaNode, Slot
from tests.backends.cpu.test_backend import CASES, conv, make_node, weights
from tests.backends.test_cuda import (
    CONVOLUTIONS,
    FUSED,
    OF_EACH_KIND,
    PARTS,
    ROUNDED,
    at,
    check_rounding,
    scaled,
)
from tests.cuda.streams import TF32, KernelStream
from tests.cuda.test_compile import TILES, TILES_AHEAD
from tests.families import AnchorFreeYolo

GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def launcher():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert not unavailable(GPU)
    from deltaconvert.cuda.launcher import CupyLauncher

    return CupyLauncher(GPU)


@pytest.fixture(autouse=True)
def _exact():
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def to_gpu(node: DeltaNode) -> DeltaNode:
    about = node.about
    args = tuple(a.to(GPU) if isinstance(a, Tensor) else a for a in about.args)
    return DeltaNode(dataclasses.replace(about, args=args))


def run(node: DeltaNode, launcher: Any, **settings: Any) -> None:
    KernelStream(to_gpu(node), launcher=launcher, device=GPU, **settings).run()


@pytest.mark.parametrize("name", CASES)
def test_float32(name, launcher):
    run(make_node(CASES[name]), launcher)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "parts"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted({*CONVOLUTIONS, *OF_EACH_KIND}))
def test_half_precisions(name, dtype, fused, launcher):
    run(at(make_node(scaled(CASES[name])), dtype), launcher, told={"fused": fused})


@pytest.mark.parametrize("told", [{}, FUSED, PARTS], ids=["chosen", "fused", "parts"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "conv 7x7 of 3 channels"])
def test_tf32(name, told, launcher):
    with torch.backends.cudnn.flags(allow_tf32=True):
        run(make_node(scaled(CASES[name])), launcher, told=told, tolerance=TF32)


@pytest.mark.parametrize("x, nearest", ROUNDED)
def test_warpgroups_round_to_tf32(x, nearest, launcher):
    if launcher.capability != (9, 0):
        pytest.skip("no Hopper")
    check_rounding(x, nearest, to_gpu, launcher=launcher, device=GPU)


# A compiler may move what reads a sum to where tensor cores still work at it: so each tile.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_each_tile_of_warpgroups(tile, dtype, launcher):
    if launcher.capability != (9, 0):
        pytest.skip("no Hopper")
    rows, columns, stages, early, splits = (*tile, *(False, 1)[len(tile) - 3:])
    told = {"bm": rows, "bn": columns, "bk": 128 // dtype.itemsize, "stages": stages,
            "tensor": True, "fused": True, "warpgroups": True, "early": early, "splits": splits}
    rounding = {"tolerance": TF32} if dtype == torch.float32 else {}
    with torch.backends.cudnn.flags(allow_tf32=True):
        for norm in ("max", "rms"):
            run(at(make_node(scaled(of_two_tiles(columns)), norm=norm), dtype), launcher,
                told=told, **rounding)


def of_two_tiles(columns: int, size: tuple[int, int] = (19, 23)) -> Any:
    """A convolution of twice as many channels, with a residual."""
    return (conv(weights(2 * columns, 320, 1, 1), padding=(0, 0), residual=Slot(1),
                 activation=("relu",)), [(3, 320, *size), (3, 2 * columns, *size)])


# Two warpgroups that multiply, and one that copies.
AHEAD = {"warpgroups": True, "bm": 128, "bn": 64, "stages": 4, "early": True, "splits": 1,
         "ahead": True}


# Of the larger map, each block has several tiles.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(19, 23), (119, 223)], ids=str)
@pytest.mark.parametrize("tile", TILES_AHEAD, ids=str)
def test_each_tile_of_warps_that_copy(tile, size, dtype, launcher):
    if launcher.capability != (9, 0):
        pytest.skip("no Hopper")
    rows, columns, stages = tile
    told = {**AHEAD, "bm": rows, "bn": columns, "bk": 64, "stages": stages}
    for norm in ("max", "rms"):
        run(at(make_node(scaled(of_two_tiles(columns, size)), norm=norm), dtype), launcher,
            told=told)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["conv 3x3", "conv 1x1 stride 2", "conv + residual + relu",
                                  "transposed", "transposed with gaps", "conv 7x7 of 3 channels"])
def test_warps_that_copy(name, dtype, launcher):
    if launcher.capability != (9, 0):
        pytest.skip("no Hopper")
    run(at(make_node(scaled(CASES[name])), dtype), launcher, told=AHEAD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted({*CONVOLUTIONS, *OF_EACH_KIND}))
def test_the_dense_way(name, dtype, launcher):
    for beside in (0, 8):
        run(at(make_node(scaled(CASES[name])), dtype), launcher, dense=True, beside=beside)


# Channels of maps that a pixel of is shared by 4 to 32 lanes, in one pack, some, or many.
@pytest.mark.parametrize("channels", [3, 24, 72, 264, 520, 1032])
def test_the_dense_way_of_many_channels(channels, launcher):
    case = (conv(weights(channels, 16, 1, 1), padding=(0, 0), residual=Slot(1),
                 activation=("relu",)), [(3, 16, 9, 11), (3, channels, 9, 11)])
    for norm in ("max", "rms"):
        node = at(make_node(scaled(case), threshold=0.2, norm=norm), torch.float16)
        run(node, launcher, dense=True)


# Pixels of a whole block and of few threads; more of them than are computed one by one.
@pytest.mark.parametrize("channels, taps, stride", [(1152, 5, 1), (672, 5, 2), (96, 7, 1),
                                                    (37, 3, 1), (16, 3, 2)])
def test_depthwise_convolutions(channels, taps, stride, launcher):
    case = (conv(weights(channels, 1, taps, taps), groups=channels, stride=(stride, stride),
                 padding=(taps // 2, taps // 2), activation=("silu",)), [(3, channels, 90, 130)])
    for norm in ("max", "rms"):
        run(at(make_node(scaled(case), threshold=0.2, norm=norm), torch.float16), launcher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bicubic of 3 channels", "pixel shuffle", "one channel", "crop",
                                  "pad channels", "conv 7x7 of 3 channels"])
def test_narrow_pixels(name, dtype, launcher):
    run(at(make_node(scaled(CASES[name])), dtype), launcher)


def network() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet50().eval().to(GPU).to(memory_format=torch.channels_last)


def clip(frames: int = 8, lanes: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    made = [torch.rand(lanes, 3, 192, 256, device=GPU)]
    for i in range(1, frames):
        frame = made[-1].clone()
        frame[:, :, 40:70, 10 * i:10 * i + 40] = torch.rand(lanes, 3, 30, 40, device=GPU)
        made.append(frame)
    return made


@pytest.mark.parametrize("graphs", [True, False], ids=["graph", "eager"])
def test_resnet_equals_dense(graphs, launcher):
    model = network()
    delta = deltaconvert.convert(model, backend="cuda", graphs=graphs)
    for frame in [*clip(), clip()[-1]]:
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-4, atol=1e-4)
    runner = delta.stream._state.runner
    assert (runner.graph is not None) == graphs
    assert all(node.backend == "cuda" for node in delta.stream.program.nodes)
    last = delta.stream.last
    assert sum(work.pixels_out for work in last.values()) == 0, "the frame was equal to the last"


@pytest.mark.parametrize("fallback", [True, False], ids=["with", "without"])
def test_the_device_chooses_the_way(fallback, launcher, monkeypatch):
    """Two frames to begin with, then everything changes, little, nothing, and everything again."""
    monkeypatch.setattr(break_even, "even", lambda *_: 0.42)  # these maps are too small
    model, small = network(), clip()
    delta = deltaconvert.convert(model, backend="cuda", dense_fallback=fallback)
    torch.manual_seed(2)
    frames = [small[0], small[1], *(torch.rand_like(small[0]) for _ in range(3))]
    little = frames[-1].clone()
    little[:, :, 40:70, 10:50] = 0.5
    frames += [little, little, torch.rand_like(little), little]
    ways = []
    for frame in frames:
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-4, atol=1e-4)
        ways.append(bool(delta.stream._state.context.work[2]))
        if ways[-1]:
            last = delta.stream.last
            assert sum(work.scheduled for work in last.values()) == sum(
                work.dense for work in last.values())
    assert ways == ([False, False, True, True, True, False, False, True, True] if fallback
                    else [False] * len(frames))
    assert len(delta.stream._state.runner.graph._bodies) == 1 + fallback


def mobile() -> nn.Module:
    """Depthwise convolutions, gates, and activations that cuDNN lacks."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small().eval().to(GPU)


class Joined(nn.Module):
    """Concatenations written in place and not, norms, pools, resizing, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 40, 1)
        self.body = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.GroupNorm(8, 64),
                                  nn.GELU(), nn.Conv2d(64, 32, 5, 1, 2, groups=32))
        self.up, self.last = nn.ConvTranspose2d(32, 24, 2, 2), nn.Conv2d(27, 5, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        y = self.body(torch.cat([early, F.silu(self.side(early))], 1))
        y = y + F.interpolate(F.max_pool2d(y, 2), scale_factor=2.0, mode="bilinear")
        return self.last(torch.cat([self.up(y), x], 1))


def furthest_from_the_law(delta: deltaconvert.DeltaModule) -> tuple[float, str]:
    """Return by how much a value is off what its inputs' values make, and whose.

    Over the threshold, in parts of its largest number.
    """
    state, program = delta.stream._state, delta.stream.program
    found = [(0.0, "")]
    for about in (node.about for node in program.nodes):
        if about.rule in ("sparsify", "densify") or about.aliases:
            continue
        edge, spec = state.edges[about.name], about.output
        new = next(n for n in program.nodes if n.about is about).evaluate(
            *(state.edges[read.name].value for read in about.inputs))
        left = change_norm(new, edge.value, about.norm, spec.is_map, spec.has_lanes)
        limit = torch.tensor(edge.threshold, device=GPU).view(-1, *[1] * (left.dim() - 1))
        off = (left - limit).max() / (1e-3 + new.abs().max())
        found.append((float(off), about.name))
    return max(found)


@pytest.mark.parametrize("make", [network, mobile, Joined, AnchorFreeYolo])
def test_the_law_holds_behind_dense_frames(make, launcher, monkeypatch):
    """In frames in which everything changes, and those behind them, at thresholds over 0."""
    monkeypatch.setattr(break_even, "even", lambda *_: 0.0)
    torch.manual_seed(0)
    model = make().eval().to(GPU)
    delta = deltaconvert.convert(model, backend="cuda", threshold=0.02, threshold_unit="std",
                                 norm="rms")
    torch.manual_seed(2)
    small, ways = clip(4), []
    frames = [small[0], *(torch.rand_like(small[0]) for _ in range(4)), *small, small[-1]]
    for frame in frames:
        delta(frame)
        ways.append(bool(delta.stream._state.context.work[2]))
        off, name = furthest_from_the_law(delta)
        assert off < 2e-5, f"{name} is off by {off} in frame {len(ways)}, of the ways {ways}"
    assert delta.stream._state.runner.graph is not None
    assert ways[2:6] == [True] * 4
    assert not ways[-1], "a frame equal to the last"


def break_even_of(stream: Any) -> float:
    return float(stream._state.context.work[5])


def test_the_break_even_is_measured_once_a_program(launcher, monkeypatch):
    """And leaves no trace: not in values, nor in what the frame is said to have done."""
    even, told = break_even.even, []
    monkeypatch.setattr(break_even, "even", lambda *args: told.append(args) or even(*args))
    delta = deltaconvert.convert(mobile(), backend="cuda", threshold=0.05, threshold_unit="std")
    first, second, *_ = clip()
    delta(first)
    delta(second)
    (points, whole), = told
    assert whole > 0
    assert all(0 < share <= 1.001 and took > 0 for share, took in points)
    assert [share for share, _ in points] == sorted(share for share, _ in points)
    last = delta.stream.last
    with_graphs, without = delta.stream, deltaconvert.convert(
        mobile(), backend="cuda", threshold=0.05, threshold_unit="std", graphs=False)
    without(first)
    without(second)
    assert last == without.stream.last
    backend = with_graphs.program.backends["cuda"]
    assert break_even_of(with_graphs) == pytest.approx(backend.break_even)
    other = delta.new_stream()
    other(first)
    other(second)
    assert break_even_of(other) == break_even_of(with_graphs)
    assert len(told) == 1
    for name, edge in other._state.edges.items():
        assert torch.equal(edge.value, with_graphs._state.edges[name].value), name


def lacks_memory(*_: object) -> None:
    raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize("alike", [True, False], ids=["must be alike", "without memory"])
def test_where_it_cannot_be_measured_the_break_even_is_estimated(alike, launcher, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: alike)
    monkeypatch.setattr(break_even, "Frames", lacks_memory)
    delta = deltaconvert.convert(mobile(), backend="cuda")
    for frame in clip(2):
        delta(frame)
    runner = delta.stream._state.runner
    assert runner.graph is not None
    assert break_even_of(delta.stream) == pytest.approx(
        dense.estimated(runner.context.cost_of_all, runner.in_chain))


def test_dense_frames_are_counted_as_such(launcher, monkeypatch):
    monkeypatch.setattr(break_even, "even", lambda *_: 0.0)
    delta = deltaconvert.convert(mobile(), backend="cuda")
    like = clip(1)[0]
    totals = []
    for _ in range(6):
        delta(torch.rand_like(like))
        totals.append(delta.stream.totals)
    assert float(delta.stream._state.context.work[2]) == 1.0
    last, edges = delta.stream.last, delta.stream._state.edges
    for name, work in last.items():
        assert work.pixels_out == work.total_out, name
        assert work.scheduled == work.dense, name
    assert all(e.mask.all() for e in edges.values() if e.spec.is_map)
    for name, work in totals[-1].items():  # of the last frame
        before = totals[-2][name]
        assert work.pixels_out - before.pixels_out == work.total_out - before.total_out, name
        assert work.scheduled - before.scheduled == work.dense - before.dense, name


def test_now_and_then_a_frame_compares_and_may_go_back(launcher, monkeypatch):
    """All frames differ everywhere; how much of it thresholds hold back changes on the way."""
    monkeypatch.setattr(break_even, "even", lambda *_: 0.42)
    delta = deltaconvert.convert(network(), backend="cuda", threshold=0.1, threshold_unit="std",
                                 norm="rms", input_threshold=0.0)
    torch.manual_seed(2)
    frame, ways = clip(1)[0], []
    for strength in [1.0] * 12 + [1e-4] * 20:
        frame = frame + strength * torch.randn_like(frame)
        delta(frame)
        ways.append(bool(delta.stream._state.context.work[2]))
    assert ways == [False] * 2 + [True] * 16 + [False] * 14


def test_a_lane_that_is_refused_among_dense_frames_keeps_its_values(launcher, monkeypatch):
    monkeypatch.setattr(break_even, "even", lambda *_: 0.0)
    model = network()
    delta = deltaconvert.convert(model, backend="cuda")
    like = clip(1)[0]
    frames = [torch.rand_like(like) for _ in range(6)]
    for frame in frames[:4]:
        before = delta(frame)
    assert float(delta.stream._state.context.work[2]) == 1.0
    bad = frames[4].clone()
    bad[1, 0, 3, 3] = float("nan")
    out = delta(bad)
    with pytest.raises(FrameError, match=r"lanes \[1\]"):
        delta.stream.check()
    assert torch.equal(out[1], before[1])
    torch.testing.assert_close(out[:1], model(bad)[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(delta(frames[5]), model(frames[5]), rtol=1e-4, atol=1e-4)
    assert float(delta.stream._state.context.work[2]) == 1.0


def distance(outputs: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((o.float() - e).norm() / e.norm())
               for o, e in zip(outputs, exact, strict=True))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_float32_model_whose_maps_are_kept_in_half_precision(name, launcher):
    """It is little further from dense float32 than the whole model in that precision is."""
    model, frames, dtype = network(), clip(), getattr(torch, name)
    delta = deltaconvert.convert(model, backend="cuda", dtype=name)
    outputs, exact = [delta(frame) for frame in frames], [model(frame) for frame in frames]
    half = network().to(dtype)
    of_half = distance([half(frame.to(dtype)) for frame in frames], exact)
    assert outputs[0].dtype == torch.float32
    assert distance(outputs, exact) < 1.5 * of_half < 0.1
    assert delta.stream._state.runner.graph is not None
    assert all(node.backend == "cuda" for node in delta.stream.program.nodes)
    maps = [e.value for e in delta.stream._state.edges.values() if e.spec.is_map]
    assert sum(value.dtype == dtype for value in maps) > 50


def test_a_detector_with_a_kept_grid_for_two_sizes(launcher):
    model = AnchorFreeYolo().eval().to(GPU)
    delta = deltaconvert.convert(model, backend="cuda")
    for size in ((64, 96), (96, 96)):
        for frame in clip(2):
            frame = F.interpolate(frame, size)
            with torch.no_grad():
                torch.testing.assert_close(delta(frame), model(frame), rtol=1e-4, atol=1e-4)


def test_the_law_holds_on_a_network(launcher):
    model = network()
    delta = deltaconvert.convert(model, backend="cuda", threshold=0.05, norm="rms")
    report = deltaconvert.validate(model, delta, clip(6))
    assert report.passed, str(report)


def test_thresholds_found_on_the_device_keep_what_they_promise(launcher):
    """All trials run in one stream, whose thresholds the device has to take anew."""
    model, frames = network(), clip(6)
    delta = deltaconvert.convert(model, backend="cuda")
    tuning = deltaconvert.tune(delta, frames, error=0.05, rounds=1)
    report = deltaconvert.validate(model, tuning.delta, frames, tolerance=0.05)
    assert report.passed, str(report)
    assert tuning.passed
    assert report.needed == pytest.approx(tuning.best.needed, rel=0.01)


def test_a_refused_lane_keeps_its_values(launcher):
    model = network()
    delta = deltaconvert.convert(model, backend="cuda")
    frames = clip(3)
    first = delta(frames[0])
    bad = frames[1].clone()
    bad[1, 0, 3, 3] = float("nan")
    out = delta(bad)
    with pytest.raises(FrameError, match=r"lanes \[1\]"):
        delta.stream.check()
    assert torch.equal(out[1], first[1])
    torch.testing.assert_close(out[:1], model(bad)[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(delta(frames[2]), model(frames[2]), rtol=1e-4, atol=1e-4)


def test_under_the_sanitizer(launcher):
    """A little of everything, for compute-sanitizer, which takes its time."""
    for name in ("conv 3x3", "conv + residual + relu", "depthwise", "max pool"):
        run(make_node(CASES[name]), launcher)
    for dtype in (torch.float16, torch.float32):
        with torch.backends.cudnn.flags(allow_tf32=True):
            run(at(make_node(scaled(CASES["conv 3x3"])), dtype), launcher, told={"fused": True},
                tolerance=TF32 if dtype == torch.float32 else None)
    if launcher.capability == (9, 0):
        run(at(make_node(scaled(CASES["conv + residual + relu"])), torch.float16), launcher,
            told=AHEAD)
    run(at(make_node(scaled(CASES["conv 3x3"])), torch.float16), launcher, dense=True)


class Distances(nn.Module):
    """A mean of the places 0 to 15, weighted by what is there: one channel, by a kernel of 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.mean = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 1, 1, bias=False)
        self.mean.weight.data = torch.arange(16.0).view(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.scores(4 * x).softmax(1))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_one_channel_behind_a_kernel_of_one_pixel(name, launcher, monkeypatch):
    """Whose map lies in memory in either layout, for the library."""
    monkeypatch.setattr(break_even, "even", lambda *_: 0.0)
    torch.manual_seed(0)
    model, dtype = Distances().eval().to(GPU), getattr(torch, name)
    half = copy.deepcopy(model).to(dtype)
    delta, like = deltaconvert.convert(half, backend="cuda"), clip(1, 1)[0]
    frames = [torch.rand_like(like) for _ in range(6)]
    outputs = [delta(frame.to(dtype)) for frame in frames]
    assert float(delta.stream._state.context.work[2]) == 1.0
    exact = [model(frame) for frame in frames]
    of_half = distance([half(frame.to(dtype)) for frame in frames], exact)
    assert distance(outputs, exact) < 2 * of_half + 1e-5


def test_streams_of_several_threads_have_graphs(launcher):
    """Also where another thread allocates and copies meanwhile, or each has a CUDA stream."""
    model, frames = network(), clip(6)
    exact = [model(frame) for frame in frames]
    delta = deltaconvert.convert(model, backend="cuda")
    ended = threading.Event()

    def run(_: int) -> tuple[float, str]:
        stream, queue = delta.new_stream(), torch.cuda.Stream(GPU)
        queue.wait_stream(torch.cuda.default_stream(GPU))
        with torch.cuda.stream(queue), torch.inference_mode():
            outputs = [stream(frame) for frame in frames]
        queue.synchronize()
        return distance(outputs, exact), str(stream._state.runner.no_graph)

    def disturb() -> None:
        with torch.cuda.stream(torch.cuda.Stream(GPU)):
            while not ended.is_set():
                torch.rand(1000, 1000).pin_memory().to(GPU, non_blocking=True).sum().item()

    torch.cuda.synchronize()
    with ThreadPoolExecutor(5) as pool:
        other = pool.submit(disturb)
        try:
            done = list(pool.map(run, range(4)))
        finally:
            ended.set()
        other.result()
    for off, no_graph in done:
        assert off < 1e-5
        assert no_graph == ""
    assert len(delta._programs) == 1


def test_streams_leave_no_memory(launcher):
    delta, frames = deltaconvert.convert(mobile(), backend="cuda"), clip(4)
    held = []
    for _ in range(5):
        stream = delta.new_stream()
        for frame in frames:
            stream(frame)
        del stream
        gc.collect()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert max(held[2:]) == held[1]


class Attends(nn.Module):
    """A pair of tensors, whole numbers, and more inputs than a kernel takes, between maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 5, 3, 1, 1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.stem(x)
        tokens = maps.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        best = mixed.mean(2).topk(20, 1)[1]
        chosen = tokens.gather(1, best[..., None].expand(-1, -1, 32)).mean(1)
        out = self.head(maps + mixed.transpose(1, 2).view(maps.shape) + chosen[:, :, None, None])
        return out, out.argmax(1)


def test_what_no_kernel_compares_is_part_of_the_graph(launcher):
    torch.manual_seed(0)
    model = Attends().eval().to(GPU)
    delta = deltaconvert.convert(model, backend="cuda")
    for frame in [*clip(6), *clip(2)]:
        wanted, found = model(frame), delta(frame)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        assert (found[1] != wanted[1]).float().mean() < 0.01
    assert delta.stream._state.runner.graph is not None
    assert all(node.backend == "cuda" for node in delta.stream.program.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("norm", ["max", "rms"])
def test_frames_that_are_no_maps_are_part_of_the_graph(dtype, norm, launcher):
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1)).eval().to(GPU, dtype)
    delta = deltaconvert.convert(model, input_threshold=0.05, norm=norm)
    clip = [torch.rand(2, 3, 8, 20, 36, device=GPU, dtype=dtype)]
    for step, lane in ((0.0, 0), (4.0, 1), (0.0, 0), (-4.0, 0)):
        clip.append(clip[-1].clone())
        clip[-1][lane, :, 1:3] += step
    for frame in clip:
        torch.testing.assert_close(delta(frame), model(frame), rtol=1e-2, atol=1e-2)
    assert delta.stream._state.runner.graph is not None
    before = delta(clip[-1] + 0.01)  # within the threshold of either norm
    assert torch.equal(before, delta(clip[-1]))
    clip[-1][1, 0, 0, 0, 0] = torch.nan
    assert torch.equal(delta(clip[-1]), before)
    with pytest.raises(FrameError, match=r"lanes \[1\]"):
        delta.stream.check()
