"""Whole networks on the synthetic clip, beside dense eager channels_last in one run.

    python benchmarks/networks.py --model resnet50 --size 360x640 --active 0.05 --json out.json

Prints, for a clip: error against dense and the error of an output frozen at frame 0, both
relative to the output's RMS; the multiply-adds needed and computed; milliseconds a frame,
dense and converted. Then a frame equal to the last, and frames that change everywhere.
Results are checked before anything is timed, and the two take turns frame by frame, so
that a drift of the machine's speed falls on both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.clips import synthetic
from deltaconvert.model_specs import build_model
from deltaconvert.state import NodeStats


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    height, width = (int(n) for n in options.size.split("x"))
    if options.threads:
        torch.set_num_threads(options.threads)
    frames = [f[None].contiguous() for f in synthetic(
        (height, width), options.frames, active_share=options.active, seed=options.seed)]
    model = build_model(options.model if ":" in options.model else f"torchvision:{options.model}")
    batch_norm_statistics(model, frames[:8])
    model = model.eval().to(memory_format=torch.channels_last)
    delta = deltaconvert.convert(
        model, backend=options.backend, threshold=options.threshold, threshold_unit="std",
        norm="rms", nodes=dict(options.node))
    result = {"machine": machine(), "options": vars(options), **on_clip(model, delta, frames),
              **still(model, delta, frames[-1]), **everything(model, delta, frames)}
    for name, value in result.items():
        print(f"{name:32} {value:.5g}" if isinstance(value, float) else f"{name:32} {value}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", default="360x640")
    parser.add_argument("--active", type=float, default=0.05)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--threshold", type=float, default=0.05, help="standard deviations")
    parser.add_argument("--node", action="append", default=[], metavar="PATTERN=THRESHOLD",
                        type=lambda text: (text.split("=")[0], float(text.split("=")[1])))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    return parser.parse_args()


def machine() -> str:
    return (f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"python {platform.python_version()}")


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(iter(
        output.values() if isinstance(output, dict) else output))


@torch.no_grad()
def dense(model: nn.Module, frame: Tensor) -> Tensor:
    return first_tensor(model(frame.to(memory_format=torch.channels_last)))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return (time.perf_counter() - start) * 1e3, result


def rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def on_clip(model: nn.Module, delta: deltaconvert.DeltaModule, frames: list[Tensor]
            ) -> dict[str, Any]:
    """Check every frame, then time the clip over again from its start."""
    frozen = dense(model, frames[0])
    errors, frozen_errors = [], []
    for frame in frames:
        expected = dense(model, frame)
        errors.append(rms(first_tensor(delta(frame)) - expected) / rms(expected))
        frozen_errors.append(rms(frozen - expected) / rms(expected))
    needed, scheduled = shares(delta)
    delta.reset()
    delta(frames[0])
    times = [(timed(lambda f=f: dense(model, f))[0], timed(lambda f=f: delta(f))[0])
             for f in frames[1:]]
    dense_ms, delta_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return {"worst_error": max(errors), "mean_frozen_error": statistics.mean(frozen_errors[1:]),
            "least_frozen_error": min(frozen_errors[1:]),
            "worst_error_over_frozen": max(e / f for e, f in zip(
                errors[1:], frozen_errors[1:], strict=True)),
            "needed_share": needed, "scheduled_share": scheduled, "dense_ms": dense_ms,
            "delta_ms": delta_ms, "speedup_over_eager": dense_ms / delta_ms,
            "efficiency": needed * dense_ms / delta_ms,
            "state_mb": delta.stream.state_bytes / 1e6,
            "dense_activations_mb": activation_bytes(model, frames[0]) / 1e6}


def shares(delta: deltaconvert.DeltaModule) -> tuple[float, float]:
    """Multiply-adds needed and computed, of the dense ones; the first frame left out."""
    total = NodeStats()
    for node in delta.statistics.values():
        total.add(node)
    frames = max(node.frames for node in delta.statistics.values())
    first = total.dense / frames
    rest = total.dense - first
    return (total.needed - first) / rest, (total.scheduled - first) / rest


def activation_bytes(model: nn.Module, frame: Tensor) -> int:
    sizes: list[int] = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: sizes.append(
        out.nbytes if isinstance(out, Tensor) else 0))
        for m in model.modules() if not list(m.children())]
    dense(model, frame)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def still(model: nn.Module, delta: deltaconvert.DeltaModule, frame: Tensor) -> dict[str, float]:
    """A frame equal to the last."""
    delta(frame)
    pairs = [(timed(lambda: dense(model, frame))[0], timed(lambda: delta(frame))[0])
             for _ in range(10)]
    dense_ms, delta_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"still_ms": delta_ms, "still_over_dense": delta_ms / dense_ms}


def everything(model: nn.Module, delta: deltaconvert.DeltaModule, frames: list[Tensor]
               ) -> dict[str, float]:
    """Frames that have nothing in common: flips of one another, with new grain."""
    generator = torch.Generator().manual_seed(1)
    unrelated = [(frames[0].flip(d) + 0.1 * torch.randn(frames[0].shape, generator=generator))
                 .clamp(0, 1) for d in (2, 3, (2, 3), 2, 3, (2, 3))]
    expected = dense(model, unrelated[0])
    error = rms(first_tensor(delta(unrelated[0])) - expected) / rms(expected)
    pairs = [(timed(lambda f=f: dense(model, f))[0], timed(lambda f=f: delta(f))[0])
             for f in unrelated[1:]]
    dense_ms, delta_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"unrelated_error": error, "unrelated_ms": delta_ms,
            "unrelated_over_dense": delta_ms / dense_ms}


if __name__ == "__main__":
    main()
