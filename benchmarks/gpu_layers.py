"""Convolution layers on a GPU at given masks, against the dense library in the same run.

    python benchmarks/gpu_layers.py [--dtype float16] [--shares 0.05 0.2 1] [--out FILE]

Each layer of a ResNet-50's body at 1920x1080 (convolution, bias, residual, ReLU), with masks
of blobs, one stream and eight different ones; outputs are checked before anything is timed.
Times are medians of CUDA graphs' replays.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.base import Buffers
from deltaconvert.backends.cuda import CudaBackend
from deltaconvert.backends.cuda.scan import as_words, words_of
from deltaconvert.config import Config
from deltaconvert.cuda.launcher import CupyLauncher
from deltaconvert.footprint import identity, window
from deltaconvert.nodes import DeltaNode, Description, EdgeSpec, Slot
from deltaconvert.operators.registry import Shapes, named
from deltaconvert.state import Edge, State

GPU = torch.device("cuda", 0)
REPEATS = 8  # of a layer in a graph
MOST_REPLAYS, FEWEST_REPLAYS, MOST_MS = 20, 5, 60.0  # of a graph, and what they may take
ALL_PROPAGATE = -1.0  # as a threshold: every candidate is written, the most that a layer can cost


@dataclass(frozen=True)
class Layer:
    """A convolution of the body, and how often it is there.

    Args:
        height, width: of its input.
        cin, cout, kernel, stride: of the convolution.
        residual: whether a map is added.
        times: how many such layers the network has.
    """

    height: int
    width: int
    cin: int
    cout: int
    kernel: int
    stride: int
    residual: bool
    times: int

    @property
    def size_out(self) -> tuple[int, int]:
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def multiply_adds(self) -> int:
        return self.cin * self.cout * self.kernel**2 * math.prod(self.size_out)

    def __str__(self) -> str:
        return (f"{self.cin}->{self.cout} {self.kernel}x{self.kernel}/{self.stride}"
                f"{' +' if self.residual else ''} {self.height}x{self.width}")


def body() -> list[Layer]:
    """Return the layers of ResNet-50 behind its stem, at 1080p."""
    layers: dict[Layer, int] = {}

    def add(*args: Any) -> None:
        layer = Layer(*args, 1)
        layers[layer] = layers.get(layer, 0) + 1

    height, width, channels = 270, 480, 64
    for planes, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            add(height, width, channels, planes, 1, 1, False)
            add(height, width, planes, planes, 3, step, False)
            if block == 0:
                add(height, width, channels, 4 * planes, 1, step, False)
            height, width = -(-height // step), -(-width // step)
            add(height, width, planes, 4 * planes, 1, 1, True)
            channels = 4 * planes
    return [Layer(*[getattr(layer, f) for f in list(Layer.__dataclass_fields__)[:-1]], times)
            for layer, times in layers.items()]


def blobs(lanes: int, height: int, width: int, share: float) -> Tensor:
    """Return a mask of a few rectangles a lane that cover about a share of the pixels."""
    mask = torch.zeros(lanes, height, width, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(height * lanes)
    for lane in range(lanes):
        while share < 1 and float(mask[lane].float().mean()) < share:
            h, w = max(1, round(height * 0.12)), max(1, round(width * 0.08))
            y = int(torch.randint(0, max(1, height - h), (1,), generator=generator))
            x = int(torch.randint(0, max(1, width - w), (1,), generator=generator))
            mask[lane, y:y + h, x:x + w] = 1
    return (mask if share < 1 else mask + 1).to(GPU)


class Bound:
    """A node bound to buffers, `REPEATS` times."""

    def __init__(self, node: DeltaNode, values: list[Tensor], share: float,
                 launcher: CupyLauncher, told: dict[str, Any] | None = None) -> None:
        """Make the buffers; the first input has a mask of blobs."""
        self.node, lanes = node, node.about.output.lanes
        state = State(lanes, [False] * lanes)
        # Kept: it owns what the steps point to.
        backend = self.backend = CudaBackend(Config(), GPU, launcher, told or {})
        # As where the network's own nodes are in front of this one, and behind it.
        backend.tables.markers.update(spec.name for spec in node.about.inputs)
        backend.tables.bits["y"] = words_of(node.about.output)
        weights = self.weights = backend.fold_filters(node)
        scratch = {s.name: torch.empty(s.nbytes, dtype=torch.uint8, device=GPU)
                   for s in backend.plan(node)}
        self.inputs = tuple(
            Edge(spec, value, torch.zeros(spec.mask_shape, dtype=torch.uint8, device=GPU))
            for spec, value in zip(node.about.inputs, values, strict=True))
        spec = node.about.output
        out = torch.randn(spec.shape, device=GPU, dtype=spec.dtype).contiguous(
            memory_format=torch.channels_last)
        mask = torch.zeros(spec.mask_shape, dtype=torch.uint8, device=GPU)
        self.output = Edge(spec, out, mask, node.about.threshold)
        backend.counters["repeats"] = REPEATS * 2
        self.steps = []
        for _ in range(REPEATS):  # each with counters of its own: a frame clears them but once
            self.steps.append(backend.bind(node, weights, Buffers(self.inputs, self.output, state,
                                                                  scratch)))
            state.context.lists.clear()
            state.context.scans.clear()
        self.context = state.context
        self.change(share)
        self.context.upload_thresholds({"y": self.output})

    def change(self, share: float) -> None:
        """Let blobs of about a share of the first input's pixels be what changed."""
        mask = self.inputs[0].mask
        mask.copy_(blobs(len(mask), *mask.shape[1:], share))
        self.mark_bits()

    def mark_bits(self) -> None:
        """Keep the inputs' masks as bits, where they are wanted."""
        for edge in self.inputs:
            place = self.context.place_of(edge)
            if place is not None:
                words = as_words(edge.mask)
                self.context.words[place:place + len(words)] = words

    def sparse(self) -> None:
        """Run `REPEATS` times."""
        self.context.counters.zero_()
        for step in self.steps:
            step()

    def fallback(self) -> None:
        """The same, the dense way."""
        for step in self.steps:
            step.dense()

    def check_fallback(self, wanted: Tensor) -> None:
        """Run once, the dense way."""
        self.output.value.normal_()
        self.fallback()
        torch.testing.assert_close(self.output.value, wanted, rtol=3e-2, atol=3e-2)

    def check(self, run: Callable[[], None], wanted: Tensor) -> float:
        """Run once; return the share of output pixels that were candidates."""
        self.output.value.normal_()
        self.output.mask.zero_()
        run()
        mask = self.output.mask.bool()
        found = mask[:, None].expand_as(wanted)
        torch.testing.assert_close(self.output.value[found], wanted[found], rtol=3e-2, atol=3e-2)
        count = int(self.context.counters[self.context.tallies["y"].candidates].sum())
        assert int(mask.sum()) > 0.99 * count, (int(mask.sum()), count)
        return count / mask.numel()


class Dense:
    """A layer's tensors, and the library's ways."""

    def __init__(self, layer: Layer, lanes: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.layer, self.lanes = layer, lanes
        k, (h, w) = layer.kernel, layer.size_out
        last = torch.channels_last
        self.x = torch.randn(lanes, layer.cin, layer.height, layer.width, device=GPU,
                             dtype=dtype).to(memory_format=last)
        self.weight = (torch.randn(layer.cout, layer.cin, k, k, device=GPU)
                       / math.sqrt(layer.cin * k * k)).to(dtype).to(memory_format=last)
        self.bias = torch.randn(layer.cout, device=GPU, dtype=dtype)
        self.added = torch.randn(lanes, layer.cout, h, w, device=GPU, dtype=dtype).to(
            memory_format=last) if layer.residual else None
        self.padding = k // 2

    def dense_fused(self) -> Tensor:
        """The library's own fusion, where it has one."""
        args = (self.layer.stride,) * 2, (self.padding,) * 2, (1, 1), 1
        if self.added is None:
            return torch.cudnn_convolution_relu(self.x, self.weight, self.bias, *args)
        return torch.cudnn_convolution_add_relu(self.x, self.weight, self.added, 1.0, self.bias,
                                                *args)

    def dense(self) -> Tensor:
        return dense(self.layer, self.x, self.weight, self.bias, self.added)


def dense(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None) -> Tensor:
    """Compute a layer as PyTorch's own operators do."""
    y = F.conv2d(x, weight, bias, layer.stride, layer.kernel // 2)
    if added is not None:
        y += added
    return F.relu_(y)


class Bench(Dense, Bound):
    """One layer."""

    def __init__(self, layer: Layer, lanes: int, dtype: torch.dtype, share: float,
                 threshold: float, launcher: CupyLauncher,
                 told: dict[str, Any] | None = None) -> None:
        Dense.__init__(self, layer, lanes, dtype)
        values = [self.x] + ([self.added] if self.added is not None else [])
        Bound.__init__(self, self._node(dtype, threshold), values, share, launcher, told)
        self.tile = self.weights.data.tile

    def _node(self, dtype: torch.dtype, threshold: float) -> DeltaNode:
        layer, operator = self.layer, named("conv2d")
        (h, w), k = layer.size_out, layer.kernel
        params = {"stride": (layer.stride,) * 2, "padding": (self.padding,) * 2,
                  "dilation": (1, 1), "groups": 1, "activation": ("relu",)}
        shape = (self.lanes, layer.cout, h, w)
        shapes_in = [tuple(self.x.shape)] + ([shape] if layer.residual else [])
        prints = (window((layer.height, layer.width), (h, w), (k, k), params["stride"],
                         params["padding"]), *([identity((h, w))] if layer.residual else []))
        specs = tuple(EdgeSpec(f"x{i}", s, dtype, self.lanes) for i, s in enumerate(shapes_in))
        args = (Slot(0), self.weight, self.bias, Slot(1) if layer.residual else None)
        return DeltaNode(Description(
            "y", "", "", "local", "", operator.function, operator, args, params, specs,
            EdgeSpec("y", shape, dtype, self.lanes), prints,
            math.prod(self.weight.shape), threshold,
            shapes=Shapes(tuple(shapes_in), shape, {"weight": tuple(self.weight.shape)}, params)))


def time_ms(function: Callable[[], Any], each: int = 1, repeats: int = MOST_REPLAYS) -> float:
    """Return the median time of a CUDA graph; ``each``: what one call does several times."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS // each):
            function()
    times: list[float] = []
    while len(times) < repeats and (
            len(times) < FEWEST_REPLAYS or REPEATS * sum(times) < MOST_MS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / REPEATS)
    return sorted(times)[len(times) // 2]


def measure(layer: Layer, lanes: int, dtype: torch.dtype, shares: Sequence[float],
            threshold: float, launcher: CupyLauncher) -> list[dict[str, Any]]:
    """Check a layer against dense, then time it beside dense; return the figures at each share.

    What takes the same whatever the masks is timed once.
    """
    bench = Bench(layer, lanes, dtype, shares[0], threshold, launcher)
    wanted, tera = bench.dense(), 2e-9 * layer.multiply_adds * lanes
    found = []
    for share in shares:
        bench.change(share)
        needed = bench.check(bench.sparse, wanted)
        sparse = time_ms(bench.sparse, REPEATS)
        found.append({"share": share, "candidates": needed, "sparse_ms": sparse,
                      "sparse_tflops": tera * needed / sparse})
    eager, dense = time_ms(bench.dense), time_ms(bench.dense_fused)
    alike = {"layer": str(layer), "times": layer.times, "lanes": lanes, "dtype": str(dtype),
             "fused": bench.tile.fused, "eager_ms": eager, "dense_ms": dense,
             "dense_tflops": tera / dense}
    if dtype == torch.float16:
        bench.check_fallback(wanted)
        alike["fallback_ms"] = time_ms(bench.fallback, REPEATS)
    return [alike | row for row in found]


def compile_all(dtype: torch.dtype, launcher: CupyLauncher) -> None:
    """Compile the kernels of all layers, several at once."""
    launcher.prepare({
        launch.kernel for lanes in (1, 8) for layer in body()
        for step in Bench(layer, lanes, dtype, 0.05, ALL_PROPAGATE, launcher).steps[:1]
        for launch in [*step.launches, *getattr(getattr(step, "dense", None), "launches", [])]})


def compiled_ms(lanes: int, dtype: torch.dtype) -> float:
    """Time all layers of the body as one function of ``torch.compile``, in a CUDA graph.

    As often as the body has each, with a filter of its own each time: the compiler would drop what
    is computed twice.
    """
    torch._dynamo.reset()
    calls = []
    for made in (Dense(layer, lanes, dtype) for layer in body()):
        calls += [(made.layer, made.x, made.weight.clone(), made.bias, made.added)
                  for _ in range(made.layer.times)]
    compiled = torch.compile(lambda calls: [dense(*call) for call in calls], dynamic=False)
    for found, call in zip(compiled(calls), calls, strict=True):
        torch.testing.assert_close(found, dense(*call), rtol=3e-2, atol=3e-2)
    return time_ms(lambda: compiled(calls))


def main() -> None:
    """Measure the body's layers, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.05, 0.2, 1.0])
    parser.add_argument("--out")
    options = parser.parse_args()
    launcher = CupyLauncher(GPU)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    rows = []
    dtype = getattr(torch, options.dtype)
    print(torch.cuda.get_device_name(GPU), torch.__version__, options.dtype)
    with torch.inference_mode():
        for lanes in (1, 8):
            made = [measure(layer, lanes, dtype, options.shares, ALL_PROPAGATE, launcher)
                    for layer in body()]
            for share, some in zip(options.shares, zip(*made, strict=True), strict=True):
                rows += some
                for row in some:
                    print(f"{row['layer']:34} x{row['times']} lanes {lanes} share {share:4.0%} "
                          f"needed {row['candidates']:5.1%} eager {row['eager_ms'] * 1e3:6.1f} "
                          f"fused {row['dense_ms'] * 1e3:6.1f} us "
                          f"{row['dense_tflops']:4.0f} T  sparse {row['sparse_ms'] * 1e3:7.1f} us "
                          f"{row['sparse_tflops']:4.0f} T "
                          f"fallback {row.get('fallback_ms', 0) * 1e3:7.1f} us "
                          f"{row['dense_ms'] / row['sparse_ms']:5.2f}x "
                          f"{'fused' if row['fused'] else 'parts'}", flush=True)
                eager, dense, sparse = (sum(r[k] * r["times"] for r in some)
                                        for k in ("eager_ms", "dense_ms", "sparse_ms"))
                print(f"== lanes {lanes} share {share:.0%}: eager {eager:.3f} ms, cuDNN's fusion "
                      f"{dense:.3f} ms, sparse {sparse:.3f} ms: {eager / sparse:.2f}x, "
                      f"{dense / sparse:.2f}x", flush=True)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(rows, file)


if __name__ == "__main__":
    main()
