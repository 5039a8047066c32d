"""bfloat16 on the cpu backend: rounded once, where it is stored, and never what is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cpu.compiling import vectors
from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.maps.storage import load, numbers_of, store
from deltaconvert.backends.rule import change_norm
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode
from tests.backends.cpu.test_backend import CASES, LANES, Stream, conv, deconv, make_node
from tests.law.checking import Law, evaluate_at_double
from tests.passes.graphs import Model

STORED = torch.bfloat16
# Half a unit in the last place, and what the float32 sum before it may be off.
ROUNDED_ONCE = 2.0**-8 * 1.001
IN_FLOAT32 = 2e-4


def stored(node: DeltaNode) -> DeltaNode:
    """Give a node's edges and constants bfloat16."""
    about = node.about
    for spec in (*about.inputs, about.output):
        object.__setattr__(spec, "dtype", STORED)
    about.args = tuple(a.to(STORED) if isinstance(a, Tensor) else a for a in about.args)
    return node


class StoredStream(Stream):
    """A node with bfloat16 edges by both backends, compared with double precision."""

    def __init__(self, node: DeltaNode, config: Config, beside: int = 0) -> None:
        super().__init__(stored(node), config, beside)

    def check_value(self, before: Tensor, new: Tensor) -> None:
        exact = evaluate_at_double(self.node, [e.value for e in self.inputs])
        mask, value = self.output.mask.bool(), self.output.value
        written = mask[:, None].expand_as(before)
        assert torch.equal(value[~written], before[~written])
        error = (value.double() - exact).abs()
        allowed = ROUNDED_ONCE * exact.abs() + IN_FLOAT32
        assert (error <= allowed)[written].all(), f"{(error - allowed)[written].max()} too far off"
        held = change_norm(exact, value.double(), self.node.about.norm, True, True)
        rounding = change_norm(allowed, allowed * 0, self.node.about.norm, True, True)
        assert (held <= self.node.about.threshold + 2 * rounding).all()


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_is_rounded_once(name: str, threads: int) -> None:
    StoredStream(make_node(CASES[name]), Config(threads=threads)).run()


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu", "depthwise", "mean pool",
                                  "gate", "conv to 3 channels", "conv of 16 + residual"])
def test_holds_back_what_is_within_the_threshold(name: str, norm: str) -> None:
    stream = StoredStream(make_node(CASES[name], threshold=0.5, norm=norm), Config(threads=2))
    stream.run()
    stream.change(0.3, [0], size=1e-3)
    work = stream.check()
    assert work.candidates > 0
    assert stream.output.counts == [0, 0, 0]


@pytest.mark.parametrize("name", ["conv 3x3", "conv + residual + relu", "depthwise", "grouped",
                                  "transposed", "max pool", "conv 7x7 of 3 channels",
                                  "conv to 3 channels", "conv of 16 + residual"])
def test_works_on_slices_of_concatenations(name: str) -> None:
    stream = StoredStream(make_node(CASES[name]), Config(threads=1), beside=5)
    stream.run()
    value = stream.output.value
    whole = torch.as_strided(value, (*value.shape[:1], *value.shape[2:], value.stride(3)), (
        value.stride(0), value.stride(2), value.stride(3), 1), value.storage_offset() - 5)
    assert (whole[..., :5] == 7).all()
    assert (whole[..., 5 + value.shape[1]:] == 7).all(), "a neighbour was overwritten"


def small_integers(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def odd_cases() -> dict[str, Any]:
    made = {}
    for channels in (1, 3, 7, 64):
        for kernel in (1, 3):
            made[f"{channels} channels, {kernel}x{kernel}"] = (conv(
                small_integers(5, channels, kernel, kernel), padding=(kernel // 2, kernel // 2),
                bias=False), [(LANES, channels, 9, 11)])
    shape = (LANES, 21, 9, 11)
    made["3 groups of 7"] = conv(small_integers(6, 7, 3, 3), groups=3, bias=False), [shape]
    made["3 groups of 33"] = (conv(small_integers(6, 33, 1, 1), groups=3, bias=False,
                                   padding=(0, 0)), [(LANES, 99, 9, 11)])
    made["depthwise"] = conv(small_integers(21, 1, 3, 3), groups=21, bias=False), [shape]
    name, args, params = deconv(small_integers(21, 6, 4, 4))
    made["transposed"] = (name, (*args[:2], None, None), params), [shape]
    return made


ODD = odd_cases()


def whole_frames(stream: Stream, values: Tensor) -> Tensor:
    """Run a first frame of these values; return what came of it."""
    stream.inputs[0].value.copy_(values)
    stream.inputs[0].mask.fill_(1)
    stream.inputs[0].publish([stream.inputs[0].spec.pixels] * LANES)
    stream.step()
    return stream.output.value


@pytest.mark.parametrize("name", ODD)
def test_small_integers_are_exact(name: str) -> None:
    stream = Stream(stored(make_node(ODD[name])), Config(threads=1))
    values = small_integers(*ODD[name][1][0])
    found = whole_frames(stream, values)
    exact = evaluate_at_double(stream.node, [values])
    assert exact.abs().max() > 0
    assert torch.equal(found, exact.to(STORED))


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_a_number_stays_at_its_own_pixel(name: str) -> None:
    """The neighbours of an odd row are the next pixel's numbers: they must not be multiplied."""
    stream = Stream(stored(make_node(ODD[name])), Config(threads=1))
    values = small_integers(*ODD[name][1][0])
    values[1, :, 4, 5] = torch.inf
    found = whole_frames(stream, values)
    marks = torch.zeros(stream.inputs[0].mask.shape, dtype=torch.uint8)
    marks[1, 4, 5] = 1
    reached = stream.node.about.footprints[0].candidates(marks)
    assert found.isfinite().all(1)[~reached].all()
    assert not found.isfinite().all(1)[reached].all()


@pytest.mark.parametrize("norm", ["max", "rms"])
@pytest.mark.parametrize("name", ["conv 3x3", "depthwise", "mean pool", "softmax",
                                  "conv to 3 channels", "conv to 8 channels"])
def test_what_is_rounded_to_the_stored_number_is_no_change(name: str, norm: str) -> None:
    stream = StoredStream(make_node(CASES[name], norm=norm), Config(threads=1))
    stream.change(1.0, range(LANES))
    stream.check()
    stream.state.fresh[:] = [False] * LANES
    stream.change(1.0, range(LANES), size=0.0)
    assert stream.check().candidates == stream.output.mask.numel()
    assert stream.output.counts == [0, 0, 0]


@pytest.mark.parametrize("pool", [lambda x: F.adaptive_avg_pool2d(x, 1),
                                  lambda x: x.mean((-1, 2), keepdim=True)])
def test_the_mean_over_the_whole_map(pool: Any) -> None:
    model = Model(lambda self, x: self.head(pool(self.conv(x))),
                  conv=nn.Conv2d(3, 7, 3), head=nn.Conv2d(7, 7, 1))
    delta = deltaconvert.convert(model, dtype="bfloat16", nodes={"*": 0.0})
    frame = torch.randn(2, 3, 9, 11)
    law = Law()
    delta.observe(law)
    for time in range(4):
        frame = frame.clone()
        frame[time % 2, :, 3, time] += 1
        law.expect({"x": frame.bfloat16()}, [time == 0] * 2)
        delta(frame)
    backends = {n.about.name: n.backend for n in delta.stream.program.nodes
                if n.about.rule == "global"}
    assert sorted(backends.values())[0] == "cpu"
    frame = frame.clone()
    frame[1] = 0
    law.expect({"x": frame.bfloat16()}, [False] * 2)
    delta(frame)
    name = next(name for name, backend in backends.items() if backend == "cpu")
    assert law.edges[name].counts == [0, 1]
    delta(frame)
    assert law.edges[name].counts == [0, 0]


@loop
def copy_all(source, target):
    """Load and store every number."""
    for i in range(source.shape[0]):
        store(target, i, load(source, i))


def test_rounds_as_pytorch_does() -> None:
    edges = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7F7FFFFF, 0x7F7F8000, 0x7F800000,
                      0x7F800001, 0x7FFFFFFF, 0x3F808000, 0x3F818000], np.uint32)
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    numbers = np.concatenate([edges, edges | np.uint32(1 << 31), random]).view(np.float32)
    found = np.zeros(len(numbers), np.uint16)
    copy_all(numbers, found)
    expected = torch.from_numpy(numbers).to(STORED)
    assert np.array_equal(np.isnan(numbers), expected.isnan().numpy())
    ours = torch.from_numpy(found.view(np.int16)).view(STORED)
    assert ours.isnan().equal(expected.isnan())
    assert ours[~ours.isnan()].equal(expected[~expected.isnan()])
    back = np.zeros(len(numbers), np.float32)
    copy_all(numbers_of(expected), back)
    assert np.array_equal(back, expected.float().numpy(), equal_nan=True)


@pytest.mark.slow
@pytest.mark.skipif(not vectors.MULTIPLIES_PAIRS, reason="this processor has no instruction for it")
def test_processors_without_the_instruction() -> None:
    """What they compile, compiled and run here."""
    features = llvmlite.binding.get_host_cpu_features()
    features["avx512bf16"] = False
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               str(tests / "convolutions" / "test_kernel.py"), __file__, "-k",
               "not processors and (float32 or bfloat16)"]
    done = subprocess.run(command, env={**os.environ, "NUMBA_CPU_FEATURES": features.flatten()},
                          capture_output=True, text=True,
                          cwd=tests.parents[2])
    assert done.returncode == 0, done.stdout[-3000:]
