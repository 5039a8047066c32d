"""How well the cpu backend does on single layers: ResNet-50's convolutions at 360x640.

    python benchmarks/layers.py [--threads 2] [--repeats 15] [--shares 0 1 5 10 20 50 100]

For every distinct convolution and several shares of changed input pixels, in blobs, it
prints the dense time (the library's own convolution with bias, channels-last, float32),
the time of the delta node's step (candidates, gather, GEMM, bias, ReLU, compare, write,
mask), and the efficiency: dense time x share of the output that had to be computed / time
taken. Dense and sparse runs alternate, medians are shown, and each result is checked
against dense before it is timed. The threshold is 0, so that every candidate is written.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deltaconvert.backends.base import Buffers, Step, create
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot
from deltaconvert.operators.registry import Shapes, named
from deltaconvert.state import Edge, State

# PyTorch's OpenMP threads spin for some milliseconds after an operator. Inside a converted
# network no dense operator runs before a step; here one does, and would be in its way.
SETTLE_S = 0.01
# A core that slept takes a while to be itself again; inside a network no step finds it asleep.
WAKING_STEPS = 3


@dataclass(frozen=True)
class Layer:
    """A convolution: channels, input size, kernel and stride."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    kernel: int
    stride: int

    @property
    def padding(self) -> int:
        return self.kernel // 2

    def __str__(self) -> str:
        return (f"{self.kernel}x{self.kernel}/{self.stride} {self.channels_in:>4} -> "
                f"{self.channels_out:<4} {self.height:>3}x{self.width:<3}")


def resnet50_layers() -> list[Layer]:
    """Return the 23 distinct convolutions of a ResNet-50 on a 360x640 frame."""
    layers = [Layer(3, 64, 360, 640, 7, 2)]
    channels, sizes = 64, [(90, 160), (90, 160), (45, 80), (23, 40), (12, 20)]
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        stride = 1 if stage == 1 else 2
        before, after = sizes[stage - 1], sizes[stage]
        layers += [Layer(channels, width, *before, 1, 1), Layer(width, width, *before, 3, stride),
                   Layer(width, 4 * width, *after, 1, 1),
                   Layer(channels, 4 * width, *before, 1, stride)]
        layers += [Layer(4 * width, width, *after, 1, 1), Layer(width, width, *after, 3, 1)]
        channels = 4 * width
    return list(dict.fromkeys(layers))


class Bench:
    """One layer as a delta node with buffers, and as a dense call."""

    def __init__(self, layer: Layer, config: Config) -> None:
        self.layer = layer
        size = (1, layer.channels_in, layer.height, layer.width)
        self.frames = [torch.randn(size).contiguous(memory_format=torch.channels_last)
                       for _ in range(2)]
        self.weight = torch.randn(layer.channels_out, layer.channels_in, layer.kernel,
                                  layer.kernel) / math.sqrt(layer.channels_in * layer.kernel ** 2)
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.bias = torch.randn(layer.channels_out)
        self.node = self._node()
        self.state = State(1, [True])
        self.input = _edge(self.node.about.inputs[0])
        self.output = _edge(self.node.about.output)
        self.step = self._bind(config)
        self.turn = 0

    def _node(self) -> DeltaNode:
        layer, operator = self.layer, named("conv2d")
        assert operator is not None
        assert operator.footprints is not None
        params = {"stride": (layer.stride,) * 2, "padding": (layer.padding,) * 2,
                  "dilation": (1, 1), "groups": 1, "activation": ("relu",)}
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
        backend = create("cpu", config, torch.device("cpu"))
        assert backend.supports(self.node) is None
        scratch: dict[str, Tensor] = {}
        for want in backend.plan(self.node):
            scratch[want.name] = torch.empty(want.nbytes, dtype=torch.uint8)
        return backend.bind(self.node, backend.fold_filters(self.node),
                            Buffers((self.input,), self.output, self.state, scratch))

    def dense(self) -> Tensor:
        """Run the library's convolution on the first frame."""
        return F.conv2d(self.frames[0], self.weight, self.bias, self.layer.stride,
                        self.layer.padding)

    def change(self, mask: Tensor) -> None:
        """Replace the masked pixels of the input by those of the other frame."""
        self.turn = 1 - self.turn
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # OpenMP's threads would spin into the step
        self.input.value.copy_(torch.where(mask, self.frames[self.turn], self.input.value))
        self.input.mask.copy_(mask[0])
        torch.set_num_threads(threads)
        self.input.publish([int(mask.sum())])

    def first_frame(self) -> None:
        """Fill the caches."""
        self.state.fresh[:] = [True]
        self.change(torch.ones(1, self.layer.height, self.layer.width, dtype=torch.bool)[None])
        self.step()
        self.state.fresh[:] = [False]

    def check(self) -> None:
        """Compare the output with a dense evaluation of the input as it is now."""
        expected = F.relu(F.conv2d(self.input.value, self.weight, self.bias, self.layer.stride,
                                   self.layer.padding))
        torch.testing.assert_close(self.output.value, expected, rtol=1e-4, atol=1e-4)


def _edge(spec: EdgeSpec) -> Edge:
    assert spec.shape is not None
    value = torch.zeros(spec.shape).contiguous(memory_format=torch.channels_last)
    return Edge(spec, value, torch.zeros(spec.mask_shape, dtype=torch.uint8))


def blobs(height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Return bool ``[1, 1, H, W]``: discs of a fifteenth of the height, to the share wanted."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = max(height / 15, 1.0)
    while share > 0 and mask.float().mean() < share:
        cy, cx = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= radius ** 2
        mask |= disc if share < 1 else torch.ones_like(mask)
    return mask[None, None]


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def measure(bench: Bench, share: float, repeats: int) -> tuple[float, float, float]:
    """Return the medians of dense and sparse ms, and the share that was needed."""
    layer = bench.layer
    mask = blobs(layer.height, layer.width, share, torch.Generator().manual_seed(0))
    for _ in range(2):
        bench.change(mask)
        work = bench.step()
        bench.check()
    dense, sparse = [], []
    for _ in range(repeats):
        dense.append(min(_ms(bench.dense) for _ in range(2)))
        time.sleep(SETTLE_S)
        for _ in range(WAKING_STEPS):
            bench.change(mask)
            ms = _ms(bench.step)
        sparse.append(ms)
    return (statistics.median(dense), statistics.median(sparse),
            work.candidates / bench.output.spec.pixels)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 1, 5, 10, 20, 50, 100],
                        help="percent of the input's pixels that change")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
          f"{options.threads} threads, median of {options.repeats}")
    config = Config(threads=options.threads)
    table: dict[float, list[float]] = {share: [] for share in options.shares}
    times: dict[float, list[tuple[float, float]]] = {share: [] for share in options.shares}
    print(f"{'layer':<27}" + "".join(f"{f'{s:g} %':>22}" for s in options.shares))
    print(f"{'':<27}" + "dense sparse needed eff".rjust(22) * len(options.shares))
    for layer in resnet50_layers():
        bench = Bench(layer, config)
        bench.first_frame()
        cells = []
        for share in options.shares:
            dense, sparse, needed = measure(bench, share / 100, options.repeats)
            efficiency = dense * needed / sparse
            table[share].append(efficiency)
            times[share].append((dense, sparse))
            cells.append(f"{dense:6.2f} {sparse:5.2f} {needed:4.0%} {efficiency:4.2f}".rjust(22))
        print(f"{layer!s:<27}" + "".join(cells), flush=True)
    for share in options.shares:
        dense, sparse = (sum(column) for column in zip(*times[share], strict=True))
        line = f"{share:g} %: {dense:.1f} ms dense, {sparse:.2f} ms sparse"
        if share:
            line += f", efficiency {statistics.geometric_mean(table[share]):.2f} (geometric mean)"
        print(line)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
