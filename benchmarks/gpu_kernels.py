"""Each kernel beside its floor, at nodes of sizes that networks have; the layers are elsewhere.

    python benchmarks/gpu_kernels.py [--out FILE] [NAME ...]

A small network makes the node's map out of pictures of 736x1280, of which a rectangle changes, and
then everything; every candidate propagates. Each launch of a frame is timed where it is: a CUDA
graph of some, each behind a copy of counters and masks as they are there, less one of the copies
alone.
The floor is the larger of the bytes that must move (input, filter, old value and new one, residual,
at the candidates alone; masks and lists) over 4.3 TB/s, and of the operations over 790 TFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gpu_layers import ALL_PROPAGATE, GPU, time_ms
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cuda.context import channels_of
from deltaconvert.backends.cuda.dense import dense_of
from deltaconvert.cuda.arguments import VectorArgs
from deltaconvert.cuda.launcher import CupyLauncher, Launch
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import State

SIZE = (736, 1280)
BYTES_A_US, OPERATIONS_A_US = 4.3e6, 790e6
AREA = 0.04  # of the rectangle


def stem(channels: int, stride: int) -> nn.Module:
    """Return what makes a map of a frame: patches of it, and patches of these."""
    made, width = [], 3
    while stride > 1:
        each = min(stride, 4)
        stride //= each
        made.append(nn.Conv2d(width, channels if stride == 1 else 32, each, each))
        width = 32
    return nn.Sequential(*made)


class Residual(nn.Module):
    """Two convolutions, the second with a residual and an activation that cuDNN has not."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 1)
        self.b = nn.Conv2d(channels, channels, kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.b(torch.relu(self.a(x))))


class Gate(nn.Module):
    """A gate, and two maps side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Joined(nn.Module):
    """Two maps side by side, of which one is written in place, and all of their numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1).flatten(2).softmax(1)


def swin() -> nn.Module:
    """Return patches and two blocks of attention within windows."""
    import torchvision

    return torchvision.models.swin_t().features[:2]


CASES: dict[str, Callable[[], nn.Module]] = {
    "conv 3x3 + residual 64x184x320": lambda: nn.Sequential(stem(64, 4), Residual(64, 3)),
    "conv 1x1 + residual 256x92x160": lambda: nn.Sequential(stem(256, 8), Residual(256, 1)),
    "depthwise 3x3 144x184x320": lambda: nn.Sequential(
        stem(144, 4), nn.Conv2d(144, 144, 3, 1, 1, groups=144)),
    "depthwise 5x5 1152x23x40": lambda: nn.Sequential(
        stem(1152, 32), nn.Conv2d(1152, 1152, 5, 1, 2, groups=1152)),
    "maximum 3x3/2 64x368x640": lambda: nn.Sequential(stem(64, 2), nn.MaxPool2d(3, 2, 1)),
    "bilinear x2 128x92x160": lambda: nn.Sequential(
        stem(128, 8), nn.Upsample(scale_factor=2, mode="bilinear")),
    "gate 144x184x320": lambda: nn.Sequential(stem(144, 4), Gate(144)),
    "group norm 64x184x320": lambda: nn.Sequential(stem(64, 4), nn.GroupNorm(8, 64)),
    "regions 6x6 of 32x23x40": lambda: nn.Sequential(stem(32, 32), nn.AdaptiveAvgPool2d(6)),
    "two maps and a softmax over 64x92x160": lambda: nn.Sequential(stem(32, 8), Joined(32)),
    "Swin-T's first stage, 96x184x320": swin,
}


class Case:
    """A converted network, and its launches in the order of a frame."""

    def __init__(self, name: str) -> None:
        """Convert it, and run a frame in which a rectangle changes."""
        torch.manual_seed(0)
        self.name, model = name, CASES[name]().eval().to(GPU, torch.float16)
        first = torch.randn(1, 3, *SIZE, device=GPU).half().contiguous(
            memory_format=torch.channels_last)
        self.delta = deltaconvert.convert(model, backend="cuda", graphs=GPU.type == "cuda")
        height, width = (round(side * math.sqrt(AREA)) for side in SIZE)
        some = first.clone()
        some[:, :, 160:160 + height, 240:240 + width] += 1
        for frame in (first, some):
            self.delta(frame)
        self.frames = {"4 %": first, "all": some + 1}
        state: Any = self.delta.stream._state
        self.state: State = state
        self.runner, self.context = state.runner, state.context
        self.copies_ms = 0.0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Time all launches: of frames in which little changes, all, and of the dense way."""
        self.copies_ms = self._ms(lambda: None)
        self.context.thresholds.fill_(ALL_PROPAGATE)
        for changing, frame in self.frames.items():
            yield from self._frame(changing, frame)
        if self.runner.dense:
            self.context.launcher.launch(self.runner.begin)
            yield from self._timed("dense", [self.runner.everything], None)
            for node in self._inner():
                step = dense_of(self.state.steps[node.about.name])
                if hasattr(step, "prepare"):
                    step.prepare()
                    given = step.convolve()  # kept until it is read
                    for launch in step.launches:
                        launch.args.given = given.data_ptr()
                yield from self._timed("dense", step.launches, node)

    def _inner(self) -> list[DeltaNode]:
        return [node for node in self.runner.nodes if node.about.rule != "sparsify"]

    def _frame(self, changing: str, frame: Tensor) -> Iterator[dict[str, Any]]:
        (door,) = self.runner.doors
        node = next(n for n in self.runner.nodes if n.about.rule == "sparsify")
        door.point_to(frame)
        yield from self._timed(changing, [door.examination], node)
        yield from self._timed(changing, [self.runner.begin], None)
        yield from self._timed(changing, [door.replacement], node)
        for inner in self._inner():
            step: Any = self.state.steps[inner.about.name]
            if hasattr(step, "behind"):  # PyTorch evaluates it
                yield from self._timed(changing, step.before, inner)
                step.given.copy_(inner.evaluate(*(self.state.edges[spec.name].value
                                                  for spec in inner.about.inputs)))
                for launch in step.behind:
                    if isinstance(launch.args, VectorArgs):
                        launch.args.given = step.given.data_ptr()
                    else:
                        launch.args.source[0].data = step.given.data_ptr()
                yield from self._timed(changing, step.behind, inner)
            else:
                yield from self._timed(changing, step.launches, inner)
        yield from self._timed(changing, [self.runner.end], None)

    def _timed(self, changing: str, launches: Sequence[Launch],
               node: DeltaNode | None) -> Iterator[dict[str, Any]]:
        """Time launches one by one, and run them."""
        for launch in launches:
            if not self._is_shown(node):
                self.context.launcher.launch(launch)
                continue
            kept = self._kept()
            ms = self._ms(lambda launch=launch: self.context.launcher.launch(launch))
            for now, before in kept:
                now.copy_(before)
            self.context.launcher.launch(launch)
            floor, found = self._floor(launch, node, changing == "dense")
            yield {"case": self.name, "node": node.about.function_name if node else "",
                   "kernel": launch.kernel.entry, "changing": changing, "candidates": found,
                   "us": 1e3 * (ms - self.copies_ms), "floor_us": floor}

    def _is_shown(self, node: DeltaNode | None) -> bool:
        """Whether it is no part of what makes the map, and what all frames have in the first."""
        if node is None or node.about.rule == "sparsify":
            return self.name == next(iter(CASES))
        return not node.about.path.startswith("0")

    def _kept(self) -> list[tuple[Tensor, Tensor]]:
        return [(now, now.clone()) for now in (self.context.counters, self.state.masks)]

    def _ms(self, run: Callable[[], Any]) -> float:
        kept = self._kept()

        def both() -> None:
            for now, before in kept:
                now.copy_(before)
            run()
        return time_ms(both)

    def _floor(self, launch: Launch, node: DeltaNode | None, dense: bool) -> tuple[float, float]:
        """Return the floor in microseconds, and the share of pixels that were candidates."""
        entry, masks = launch.kernel.entry, self.state.masks.numel()
        if node is None:  # around the nodes
            words = 4 * (self.context.counters.numel() + self.context.words.numel())
            moved = {"begin_frame": masks + words, "change_everything": masks + words,
                     "end_frame": 4 * words}[entry]
            return moved / BYTES_A_US, 1.0
        about, edge = node.about, self.state.edges[node.about.name]
        pixels, size = edge.mask.numel(), edge.value.element_size()
        tally = self.context.tallies[about.name]
        whole = dense or (about.rule == "global" and about.function_name != "window_attention")
        found = pixels if whole else float(self.context.counters[tally.candidates].sum())
        if about.rule == "sparsify":
            found = float(edge.mask.sum())
        share = min(found / pixels, 1.0)
        inputs = [self.state.edges[spec.name] for spec in about.inputs]
        read = sum(e.value.numel() * e.value.element_size() for e in inputs)
        weights = sum(a.numel() * size for a in about.args if isinstance(a, Tensor))
        out, seen = pixels * channels_of(edge) * size, sum(e.mask.numel() for e in inputs)
        operations = 0.0
        if entry in ("find_candidates", "unite_masks", "find_windows"):
            moved = seen + (4 * found if entry == "find_candidates" else pixels * share)
        elif entry == "examine_pixels":
            moved = 2 * out + pixels
        elif entry == "replace_pixels":
            moved = 2 * pixels + 2 * out * share
        elif entry in ("sum_pixels", "average_regions"):
            moved = read
        elif entry in ("finish_moments", "settle_vector"):
            moved = 3 * channels_of(edge) * size * len(edge.mask)
        elif entry == "finish_all":
            moved = 2 * out + (out if len(inputs) > 1 else 0)
        elif about.function_name in ("softmax", "flatten") or entry.endswith("_parts"):
            moved = 3 * out * share  # PyTorch's result, the old value and the new one
        else:
            moved = read * share + weights + out * share * (1 if dense else 2)
            operations = 2 * share * node.dense_multiply_adds * len(edge.mask)
        return max(moved / BYTES_A_US, operations / OPERATIONS_A_US), share


def compile_all() -> None:
    """Compile all kernels."""
    for name in CASES:
        Case(name)


def all_rows(launcher: CupyLauncher | None = None,
             names: Sequence[str] = tuple(CASES)) -> Iterator[dict[str, Any]]:
    """Time all kernels, and print them."""
    for name in names:
        for row in Case(name).rows():
            print(f"{row['case']:36} {row['node']:14} {row['kernel']:18} {row['changing']:6} "
                  f"{row['candidates']:6.1%} {row['us']:8.2f} us, floor {row['floor_us']:.2f}",
                  flush=True)
            yield row


def main() -> None:
    """Time what is asked for, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CASES))
    parser.add_argument("--out")
    options = parser.parse_args()
    rows = []
    with torch.inference_mode():
        for row in all_rows(names=options.names):
            rows.append(row)
            if options.out:
                with open(options.out, "w", encoding="utf-8") as file:
                    json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
