"""Single convolutions: the delta node's step against the library's own convolution.

For every layer and share of changed input pixels, in blobs: the time of the dense convolution
with its bias (channels-last), the time of the delta node's step (candidates, gather, GEMM,
bias, ReLU, compare, write, mask), and

    efficiency = dense time x needed share / time

where the needed share is that of the output pixels with a changed pixel in their receptive
field. The threshold is 0, so that every candidate is written. Each result is compared with
dense before anything is timed.

Both are timed as they run within a frame, with all their threads awake, and again and again,
so that caches hold as much of a layer as they can.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaconvert.backends.base import Buffers, Step, Work
from deltaconvert.backends.cpu.backend import CpuBackend
from deltaconvert.bench.outputs import relative_rms
from deltaconvert.bench.prompt import PromptWorkers
from deltaconvert.bench.timing import Spread, ms_of, settle
from deltaconvert.config import Config
from deltaconvert.errors import CheckError, InputError
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot
from deltaconvert.operators.registry import Shapes, named
from deltaconvert.state import Edge, State

SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
ROUNDS = 9
DENSE_UNTIMED, DENSE_TIMED = 1, 2
# Frames before the one that is timed: behind the pause after dense, when cores were asleep, and
# from one share to the next.
WAKING, BETWEEN = 3, 1
# The same sums as dense in another order.
TOLERANCE = 1e-5
# The target's own words: dense convolutions of 32 channels or more, 5 to 50 % active.
FEWEST_CHANNELS, TARGET_SHARES = 32, (0.05, 0.5)


@dataclass(frozen=True)
class Layer:
    """A convolution on one size of map."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def kind(self) -> str:
        """``dense``, ``depthwise`` or ``grouped``."""
        if self.groups == 1:
            return "dense"
        return "depthwise" if self.groups == self.channels_in else "grouped"

    @property
    def is_target(self) -> bool:
        """Whether it counts among the dense convolutions of 32 channels or more."""
        return self.kind == "dense" and min(self.channels_in, self.channels_out) >= FEWEST_CHANNELS

    def __str__(self) -> str:
        """Return one line of a table."""
        strided = f"/{self.stride[0]}" if max(self.stride) > 1 else ""
        dilated = f" d{self.dilation[0]}" if max(self.dilation) > 1 else ""
        grouped = {"dense": "", "depthwise": " dw"}.get(self.kind, f" g{self.groups}")
        return (f"{self.kernel[0]}x{self.kernel[1]}{strided}{dilated}{grouped} {self.channels_in}"
                f" -> {self.channels_out}, {self.height}x{self.width}")


def convolutions(model: nn.Module, frame: Tensor) -> list[Layer]:
    """Return the distinct convolutions that a model runs on such a frame, in order.

    Those on a map of one pixel are left out: they are gates, and run whole.
    """
    found: dict[Layer, None] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert isinstance(module, nn.Conv2d)
        if output.shape[2] * output.shape[3] > 1 and not isinstance(module.padding, str):
            found[_layer(module, inputs[0])] = None

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.inference_mode():
            model(frame)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _layer(module: nn.Conv2d, x: Tensor) -> Layer:
    assert not isinstance(module.padding, str)
    height, width = x.shape[2:]
    return Layer(module.in_channels, module.out_channels, height, width, _pair(module.kernel_size),
                 _pair(module.stride), _pair(module.padding), _pair(module.dilation),
                 module.groups)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return numbers[0], numbers[1]


def blobs(height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Return bool ``[H, W]``: discs of a fifteenth of the height, to the share wanted."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    if share >= 1:
        return ~mask
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = max(height / 15, 1.0)
    while mask.float().mean() < share:
        cy, cx = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
        mask |= (y - cy) ** 2 + (x - cx) ** 2 <= radius ** 2
    return mask


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: OpenMP's others would spin into what is timed next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class LayerRun:
    """One layer as a delta node with buffers of its own, and as a dense call.

    Args:
        layer: what.
        config: of the cpu backend; the threshold stays 0.
    """

    def __init__(self, layer: Layer, config: Config) -> None:
        """Make weights and two frames from random numbers, and run the first frame."""
        generator = torch.Generator().manual_seed(0)
        self.layer = layer
        size = (1, layer.channels_in, layer.height, layer.width)
        self.frames = [torch.randn(size, generator=generator).contiguous(
            memory_format=torch.channels_last) for _ in range(2)]
        fan_in = layer.channels_in // layer.groups * math.prod(layer.kernel)
        self.weight = (torch.randn(layer.channels_out, layer.channels_in // layer.groups,
                                   *layer.kernel, generator=generator)
                       / math.sqrt(fan_in)).contiguous(memory_format=torch.channels_last)
        self.bias = torch.randn(layer.channels_out, generator=generator)
        self.node = self._node()
        self.state = State(1, np.ones(1, np.bool_))
        self.input, self.output = _edge(self.node.about.inputs[0]), _edge(self.node.about.output)
        self.workers = PromptWorkers(config.threads or torch.get_num_threads())
        self.step = self._bind(config)
        self.turn = 0
        self._first_frame()

    def _node(self) -> DeltaNode:
        operator = named("conv2d")
        assert operator is not None
        assert operator.footprints is not None
        params = {"stride": self.layer.stride, "padding": self.layer.padding,
                  "dilation": self.layer.dilation, "groups": self.layer.groups,
                  "activation": ("relu",)}
        shapes = Shapes((tuple(self.frames[0].shape),), tuple(self.dense().shape),
                        {"weight": tuple(self.weight.shape)}, params)
        specs = [EdgeSpec(name, shape, torch.float32, 1) for name, shape in
                 (("x", shapes.inputs[0]), ("y", shapes.output))]
        return DeltaNode(Description(
            "y", "", "", "local", "", operator.function, operator,
            (Slot(0), self.weight, self.bias, None), params, (specs[0],), specs[1],
            footprints=tuple(operator.footprints(shapes)),
            multiply_adds=operator.multiply_adds(shapes), shapes=shapes))

    def _bind(self, config: Config) -> Step:
        backend = CpuBackend(config)
        backend.workers = self.workers
        if reason := backend.supports(self.node):
            raise InputError(f"{self.layer}: backend cpu does not run it: {reason}.")
        scratch = {want.name: torch.empty(want.nbytes, dtype=torch.uint8)
                   for want in backend.plan(self.node)}
        return backend.bind(self.node, backend.fold_filters(self.node),
                            Buffers((self.input,), self.output, self.state, scratch))

    def dense(self) -> Tensor:
        """Run the library's convolution on the first frame."""
        return self._convolve(self.frames[0])

    def _convolve(self, x: Tensor) -> Tensor:
        layer = self.layer
        return F.conv2d(x, self.weight, self.bias, layer.stride, layer.padding, layer.dilation,
                        layer.groups)

    def change(self, mask: Tensor, pixels: Tensor) -> None:
        """Replace the masked pixels of the input by those of the other frame.

        Args:
            mask: uint8 ``[1, H, W]``.
            pixels: where it is set, as indices into ``H * W``.
        """
        self.turn = 1 - self.turn
        with one_thread():
            rows, new = (t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
                         for t in (self.input.value, self.frames[self.turn]))
            rows.index_copy_(0, pixels, new.index_select(0, pixels))
            self.input.mask.copy_(mask)
        self.input.publish([len(pixels)])

    def _first_frame(self) -> None:
        mask = torch.ones_like(self.input.mask)
        self.change(mask, torch.arange(mask.numel()))
        self.step()
        self.state.fresh[:] = False

    def check(self) -> None:
        """Compare the output with a dense evaluation of the input as it is now.

        Raises:
            CheckError: they differ.
        """
        error = relative_rms(self.output.value, F.relu(self._convolve(self.input.value)))
        if not error <= TOLERANCE:
            raise CheckError(f"{self.layer}: off dense by {error:.1e} (relative RMS), over "
                             f"{TOLERANCE:g}; nothing was timed.")


def _edge(spec: EdgeSpec) -> Edge:
    assert spec.shape is not None
    value = torch.zeros(spec.shape).contiguous(memory_format=torch.channels_last)
    return Edge(spec, value, torch.zeros(spec.mask_shape, dtype=torch.uint8))


@dataclass(frozen=True)
class Point:
    """One layer at one share of changed input pixels.

    Args:
        share: asked for; ``active`` is what the blobs came to.
        needed, scheduled: multiply-adds over the dense ones.
        ms: of the step, over the rounds.
        efficiency: dense median x needed / median; ``None`` where nothing was needed.
    """

    share: float
    active: float
    needed: float
    scheduled: float
    ms: Spread
    efficiency: float | None


@dataclass(frozen=True)
class LayerResult:
    """One layer: its dense time, and its points."""

    layer: Layer
    dense_ms: Spread
    points: list[Point]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        layer = self.layer
        return {"layer": str(layer), "kind": layer.kind, "channels_in": layer.channels_in,
                "channels_out": layer.channels_out, "size": [layer.height, layer.width],
                "kernel": layer.kernel, "stride": layer.stride, "dilation": layer.dilation,
                "groups": layer.groups, "dense_ms": self.dense_ms.to_dict(),
                "points": [{"share": p.share, "active_share": p.active, "needed_share": p.needed,
                            "scheduled_share": p.scheduled, "ms": p.ms.to_dict(),
                            "efficiency": p.efficiency} for p in self.points]}


def measure(layer: Layer, config: Config, shares: Sequence[float] = SHARES,
            rounds: int = ROUNDS) -> LayerResult:
    """Check one layer at all shares, then time it at all of them, beside dense, in rounds."""
    with torch.inference_mode():
        run = LayerRun(layer, config)
        generator = torch.Generator().manual_seed(0)
        steps = [_ShareStep(run, blobs(layer.height, layer.width, share, generator))
                 for share in shares]
        for step in steps:
            step.checked()
        dense: list[float] = []
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(rounds):
            dense += [ms_of(run.dense) for _ in range(DENSE_UNTIMED + DENSE_TIMED)][DENSE_UNTIMED:]
            settle()
            for ms, step in zip(times, steps, strict=True):
                ms.append(step.timed(WAKING if step is steps[0] else BETWEEN))
    spread = Spread.of(dense)
    points = [_point(share, step, Spread.of(ms), spread)
              for share, step, ms in zip(shares, steps, times, strict=True)]
    return LayerResult(layer, spread, points)


class _ShareStep:
    """A layer's frames at one share of changed pixels."""

    def __init__(self, run: LayerRun, mask: Tensor) -> None:
        self.run = run
        self.mask = mask[None].to(torch.uint8)
        self.pixels = mask.flatten().nonzero()[:, 0]
        self.work = Work(0, 0)

    def checked(self) -> None:
        """Run two frames and compare each with dense; remember the work."""
        for _ in range(2):
            self.run.change(self.mask, self.pixels)
            work = self.run.step()
            assert work is not None  # only a GPU's steps count later
            self.work = work
            self.run.check()

    def timed(self, before: int) -> float:
        """Return the milliseconds of a step, with all helpers there, behind some other frames."""
        ms = 0.0
        for _ in range(before + 1):
            self.run.change(self.mask, self.pixels)
            self.run.step()
            ms = (time.perf_counter() - self.run.workers.ready) * 1e3
        return ms


def _point(share: float, step: _ShareStep, ms: Spread, dense: Spread) -> Point:
    needed = step.work.candidates / step.run.output.spec.pixels
    return Point(share, len(step.pixels) / step.mask.numel(), needed,
                 step.work.scheduled / step.run.node.dense_multiply_adds, ms,
                 dense.median * needed / ms.median if needed else None)


def efficiencies(results: Iterable[LayerResult], chosen: Callable[[Layer], bool],
                 share: float | None = None) -> list[float]:
    """Return the efficiencies of some layers, at one share or at those of the target."""
    low, high = TARGET_SHARES if share is None else (share, share)
    return [p.efficiency for r in results if chosen(r.layer) for p in r.points
            if p.efficiency is not None and low <= p.share <= high]


def mean_efficiency(results: Iterable[LayerResult], chosen: Callable[[Layer], bool],
                    share: float | None = None) -> float | None:
    """Return their geometric mean; ``None`` where there are none."""
    found = efficiencies(results, chosen, share)
    return statistics.geometric_mean(found) if found else None


def summary(results: Sequence[LayerResult]) -> dict[str, float | None]:
    """Return the geometric means of the efficiency at 5 to 50 % active."""
    return {"dense_32_channels_or_more": mean_efficiency(results, lambda layer: layer.is_target),
            "depthwise": mean_efficiency(results, lambda layer: layer.kind == "depthwise"),
            "all": mean_efficiency(results, lambda layer: True)}
