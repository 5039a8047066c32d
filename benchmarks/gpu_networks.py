"""Whole networks on a GPU, frame by frame, against dense inference in the same run.

    python benchmarks/gpu_networks.py [--compile] [--precisions tf32 float32] [--out FILE]

The clip is textured noise with rectangles of other noise that move, about 5 % of the pixels a
frame, different in every stream; BatchNorm statistics come from it. A frame's time is the median
over frames, by CUDA events; the outputs are compared before, also with an output frozen at the
first frame.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.outputs import tensors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

GPU = torch.device("cuda", 0)
SIZES = {"720p": (720, 1280), "1080p": (1088, 1920)}
MULTIPLES = {"hrnet_w32": 32}  # of which height and width must be
MOST_SECONDS = 1.0  # of timing one thing


def resnet50() -> nn.Module:
    import torchvision

    return torchvision.models.resnet50()


def pose_resnet() -> nn.Module:
    from pose_resnet import PoseResNet

    return PoseResNet()


def hrnet_w32() -> nn.Module:
    import timm

    return timm.create_model("hrnet_w32")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50, "pose_resnet": pose_resnet, "hrnet_w32": hrnet_w32}


def dtype_of(precision: str) -> torch.dtype:
    """Return what numbers of a precision are kept as; tf32 is a way to multiply float32."""
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


def size_of(name: str, size: str) -> tuple[int, int]:
    """Return height and width of a network's frames."""
    multiple = MULTIPLES.get(name, 1)
    height, width = (-(-side // multiple) * multiple for side in SIZES[size])
    return height, width


def cases() -> list[tuple[str, int, str]]:
    """Return sizes, streams and precisions in which each network is measured."""
    return [(size, lanes, "float16") for size in ("1080p", "720p") for lanes in (1, 8)] + [
        ("1080p", lanes, precision) for precision in ("tf32", "float32") for lanes in (1, 8)]


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name]().eval()


def built(name: str) -> nn.Module:
    """Return a network of its own, with random weights, on the CPU."""
    return copy.deepcopy(_built(name))


def compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return a network compiled for what it is given first.

    "max-autotune" tries for minutes a network; the convolutions are cuDNN's in both.
    """
    torch._dynamo.reset()
    made: Callable[[Tensor], Any] = torch.compile(model, mode="reduce-overhead", dynamic=False)
    return made


def clip(lanes: int, size: tuple[int, int], frames: int) -> list[Tensor]:
    """Return frames in float32: two rectangles a lane that move over a fixed background."""
    torch.manual_seed(0)
    height, width = size
    ground = torch.randn(lanes, 3, height, width, device=GPU)
    side_y, side_x = height // 7, width // 7
    things = torch.randn(lanes, 2, 3, side_y, side_x, device=GPU)
    made = []
    for index in range(frames):
        frame = ground.clone()
        for lane in range(lanes):
            for k in range(2):
                y = (37 * lane + 300 * k + 2 * index) % (height - side_y)
                x = (211 * lane + 500 * k + 5 * index) % (width - side_x)
                frame[lane, :, y:y + side_y, x:x + side_x] = things[lane, k]
        made.append(frame)
    return made


def frame_ms(function: Callable[[Tensor], Any], frames: list[Tensor], rounds: int = 3) -> float:
    """Return the median time of a frame in milliseconds, over up to `rounds` runs of the clip."""
    times = frame_times(function, frames, rounds)
    return times[len(times) // 2]


def frame_times(function: Callable[[Tensor], Any], frames: list[Tensor],
                rounds: int) -> list[float]:
    """Return each frame's time in milliseconds, the shortest first.

    No run is begun once those before it have taken `MOST_SECONDS`.
    """
    for frame in frames[:4]:
        function(frame)
    torch.cuda.synchronize()
    times: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    started = time.monotonic()
    for _ in range(rounds):
        if time.monotonic() - started > MOST_SECONDS:
            break
        for frame in frames:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function(frame)
            end.record()
            times.append((start, end))
        torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in times)


def error_of(outputs: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest relative error of the first lane over the frames."""
    return max(float((o[:1].float() - e).norm() / e.norm())
               for o, e in zip(outputs, exact, strict=True))


def graphed(model: nn.Module, frame: Tensor) -> Callable[[Tensor], list[Tensor]]:
    """Return dense inference as one CUDA graph, the frame copied in and the outputs out."""
    static = frame.clone()
    for _ in range(3):
        model(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(static)

    def run(frame: Tensor) -> list[Tensor]:
        static.copy_(frame)
        graph.replay()
        return [t.clone() for t in tensors(out)]
    return run


@dataclass(frozen=True)
class Dense:
    """A dense network with its clip.

    Args:
        model: in its precision, channels last.
        frames: likewise.
        exact: the first lane's outputs, in single precision.
        figures: what the rows of all thresholds have in common.
    """

    model: nn.Module
    frames: list[Tensor]
    exact: list[Tensor]
    figures: dict[str, Any]


def measure(name: str, size: str, lanes: int, dtype: torch.dtype, with_compile: bool,
            thresholds: Sequence[float] = (0.0, 0.05)) -> list[dict[str, Any]]:
    """Return the figures of a network at each threshold, beside its dense runtimes."""
    dense = measure_dense(name, size, lanes, dtype, with_compile)
    unrelated = [f + torch.randn_like(f) for f in dense.frames[:4]] * 3
    rows = []
    for threshold in thresholds:
        row = dense.figures | measure_converted(dense, threshold, unrelated)
        if threshold == 0 and name == "hrnet_w32" and lanes == 1:  # where most work is needed
            sparse = deltaconvert.convert(dense.model, backend="cuda", norm="rms",
                                          dense_fallback=False)
            row["sparse_only_ms"] = frame_ms(sparse, dense.frames[1:])
            print(f"without a dense fallback {row['sparse_only_ms']:.3f} ms")
            del sparse
        rows.append(row)
        print(in_words(row), flush=True)
    return rows


def measure_dense(name: str, size: str, lanes: int, dtype: torch.dtype,
                  with_compile: bool) -> Dense:
    """Build a network, and measure it by its dense runtimes."""
    frames = clip(lanes, size_of(name, size), 12)
    model = built(name).to(GPU)
    batch_norm_statistics(model, [frames[0][:1], frames[5][:1]])
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    exact = [model(f[:1]) for f in frames]
    torch.backends.cudnn.allow_tf32 = tf32
    model = model.to(dtype).to(memory_format=torch.channels_last)
    frames = [f.to(dtype).contiguous(memory_format=torch.channels_last) for f in frames]
    ms = {"eager": frame_ms(model, frames), "graph": frame_ms(graphed(model, frames[0]), frames)}
    off = {"dense_error": error_of([model(f) for f in frames], exact)}
    if with_compile:
        run = compiled(model)
        off["compiled_error"] = error_of([run(frames[0]).clone()], exact[:1])
        ms["compiled"] = frame_ms(run, frames)
        torch._dynamo.reset()  # with the memory of its graphs
    return Dense(model, frames, exact, {
        "network": name, "size": size, "lanes": lanes, "dtype": str(dtype), "tf32": tf32,
        "share": float((frames[1] != frames[0]).any(1).float().mean()), "dense_ms": ms, **off,
        "frozen": error_of([exact[0]] * len(frames), exact)})


def measure_converted(dense: Dense, threshold: float, unrelated: list[Tensor]) -> dict[str, Any]:
    """Convert a network, and measure it on its clip, a still frame and unrelated ones."""
    start = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    delta = deltaconvert.convert(dense.model, backend="cuda", threshold=threshold, norm="rms",
                                 threshold_unit="std")
    outputs = [delta(f) for f in dense.frames]
    torch.cuda.synchronize()
    first = time.monotonic() - start
    error = error_of(outputs, dense.exact)
    ms, best = frame_ms(delta, dense.frames[1:]), min(dense.figures["dense_ms"].values())
    work = list(delta.stream.last.values())
    still_times = frame_times(delta, [dense.frames[-1]] * 100, 5)
    still = still_times[len(still_times) // 2]
    program = delta.stream.program
    return {"threshold": threshold, "ms": ms, "speedup": best / ms, "still_us": 1e3 * still,
            "still_share": still / best,
            "still_p90_us": 1e3 * still_times[len(still_times) * 9 // 10],
            "needed": sum(w.needed for w in work) / sum(w.dense for w in work), "error": error,
            "all_ms": frame_ms(delta, unrelated), "first_clip_s": first,
            "state_mb": program.plan.nbytes / 1e6, "value_mb": program.plan.value_bytes / 1e6,
            "allocated_mb": (torch.cuda.memory_allocated() - before) / 1e6,
            "graph": delta.stream._state.runner.no_graph or "yes",
            "whole": [n.about.name for n in program.nodes
                      if program.weights[n.about.name] is None
                      or getattr(program.weights[n.about.name], "kind", "") == "whole"]}


def in_words(row: dict[str, Any]) -> str:
    """Return a line of what was measured."""
    dense = ", ".join(f"{name} {ms:.3f}" for name, ms in row["dense_ms"].items())
    single = " (tf32)" if row["tf32"] and row["dtype"] == "torch.float32" else ""
    return (f"{row['network']:12} {row['size']} lanes {row['lanes']} {row['dtype']}{single} "
            f"changing {row['share']:.1%} threshold {row['threshold']}: dense {dense} ms; delta "
            f"{row['ms']:.3f} ms, {row['speedup']:.2f}x, needed {row['needed']:.1%}; all changing "
            f"{row['all_ms']:.3f} ms; still frame {row['still_us']:.0f} us "
            f"(p90 {row['still_p90_us']:.0f}), {row['still_share']:.1%}; error {row['error']:.2e} "
            f"(dense {row['dense_error']:.2e}, frozen {row['frozen']:.2e}); state "
            f"{row['state_mb']:.0f} MB of values {row['value_mb']:.0f}; graph {row['graph']}; "
            f"first {row['first_clip_s']:.1f} s")


def main() -> None:
    """Measure what is asked for, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--lanes", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="*", default=["float16"],
                        help="names of PyTorch's dtypes, or tf32")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(GPU), "torch", torch.__version__)
    rows = []
    with torch.inference_mode():
        for name in options.networks:
            for size in options.sizes:
                for lanes in options.lanes:
                    for precision in options.precisions:
                        torch.backends.cudnn.allow_tf32 = precision != "float32"
                        rows += measure(name, size, lanes, dtype_of(precision), options.compile)
                        torch.cuda.empty_cache()
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
