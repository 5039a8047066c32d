"""Networks of many kinds, beside eager PyTorch: that no kind is left out, and nothing is slow.

    python -m benchmarks.kinds [SPEC ...] [--size 352 640] [--active 0.03] [--threads 2]
        [--device cuda] [--precision float16] [--json FILE]

Three figures for each: a frame of the synthetic clip, at a threshold of 0.02 standard deviations;
a frame equal to the last; and frames of which everything differs, at threshold 0. On a CPU all
of them take turns with eager channels_last; on a GPU, CUDA events time them one after the other,
and eager is also captured in a CUDA graph. Weights are random and seeded, BatchNorm statistics
from the clip. What threshold 0 answers, to unrelated frames and to those of the clip, is compared
with the network in float32 first. Without arguments, the networks of the tables in
docs/performance.md and docs/performance-cuda.md; a spec is what `deltaconvert convert` takes, or a
name of `coverage_cases.NETWORKS`. Models of timm need ``make .venv/installed-timm``.

Each network runs in a process beside this one: one that fails is told of, and the others follow.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
from benchmarks import gpu_networks
from benchmarks.apart import Apart, Failed
from benchmarks.coverage_cases import NETWORKS
from deltaconvert.bench import machine
from deltaconvert.bench.outputs import relative_rms
from deltaconvert.bench.pictures import unrelated
from deltaconvert.bench.timing import Turn, flat, take_turns
from deltaconvert.calibrate import batch_norm_statistics
from deltaconvert.cli.output import check_writable, write_json
from deltaconvert.clips import synthetic
from deltaconvert.model_specs import build_model
from deltaconvert.outputs import tensors
from deltaconvert.words import text_table
from deltaconvert.work import Work

SPECS = (
    "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "squeezenet1_1", "vgg11_bn",
    "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf",
    "convnext_tiny", "timm:ghostnet_100", "timm:repvgg_a0",
    "timm:fastvit_t8", "timm:dla34", "timm:ese_vovnet19b_dw", "timm:cspdarknet53",
    "timm:res2net50_26w_4s", "timm:resnest14d", "timm:skresnet18", "timm:edgenext_small",
    "timm:mobilevit_s", *NETWORKS)
# What a GPU has the time for.
MORE = (
    "mobilenet_v3_large", "efficientnet_v2_s", "regnet_x_3_2gf", "swin_t", "fcn_resnet50",
    "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "timm:convnextv2_atto",
    "timm:mobilenetv4_conv_small", "timm:inception_v4", "timm:nf_resnet50", "timm:poolformer_s12",
    "timm:repvit_m0_9", "timm:fasternet_t0", "timm:focalnet_tiny_srf", "timm:mixnet_s")
THRESHOLD, FRAMES, ROUNDS, MOST_SECONDS = 0.02, 13, 3, 300.0
SIZES = {"cpu": (352, 640), "cuda": (736, 1280)}


@dataclass(frozen=True)
class Figures:
    """What was measured; medians of ms a frame.

    Args:
        eager, moving, still, everywhere: dense; and converted, see the module.
        needed: multiply-adds of the moving frames, over dense.
        error: the worst of the frames at threshold 0, relative RMS.
        dense_error: that of the dense network, in a half precision.
        graph: dense in a CUDA graph; -1 where PyTorch cannot capture it.
        first_s: seconds from `convert` to the first output.
        whole: nodes that run whole though they need not, by their functions.
        no_graph: why the converted network is no CUDA graph.
    """

    network: str
    eager: float
    moving: float
    still: float
    everywhere: float
    needed: float
    error: float
    dense_error: float = 0.0
    graph: float = 0.0
    first_s: float = 0.0
    whole: tuple[str, ...] = ()
    no_graph: str = ""

    @property
    def best(self) -> float:
        """The best dense time."""
        return min(self.eager, self.graph) if self.graph > 0 else self.eager


def main() -> None:
    """Measure each network and print the table."""
    options = parse()
    check_writable(options.json)
    about = machine.describe(options.threads)
    print(machine.in_words(about))
    made: list[Figures] = []
    failed: dict[str, str] = {}
    run = Apart(in_process, MOST_SECONDS)
    started = time.monotonic()
    for spec in options.specs:
        if time.monotonic() - started > options.seconds:
            failed[spec] = "no time left"
            continue
        try:
            figures, card = run(spec, options)
        except Failed as reason:
            failed[spec] = str(reason)
            print(f"{spec}: {reason}", flush=True)
            continue
        about |= card
        made.append(figures)
        print(f"{spec}: {figures}", flush=True)
        write_json(options.json, {"machine": about, "networks": [asdict(f) for f in made],
                                  "failed": failed})
    run.close()
    print(f"\n{table(made)}")
    for spec, reason in failed.items():
        print(f"{spec}: {reason}")


def in_process(spec: str, options: argparse.Namespace) -> tuple[Figures, dict[str, Any]]:
    """Measure one network as the command line says; return the card too, if there is one."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    card = torch.cuda.get_device_name() if options.device == "cuda" else ""
    dtype = getattr(torch, options.precision.replace("tf32", "float32"))
    try:
        figures = measure(spec, tuple(options.size), options.active, options.threads,
                          options.device, dtype)
    finally:
        gc.collect()
        if card:
            torch.cuda.empty_cache()
    return figures, {"card": card, "precision": options.precision} if card else {}


def measure(spec: str, size: tuple[int, int], active: float, threads: int, device: str = "cpu",
            dtype: torch.dtype = torch.float32) -> Figures:
    """Measure one network."""
    on_gpu = device == "cuda"
    frames, others = ([f.to(device) for f in some] for some in frames_of(size, active))
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        exact = build(spec, frames).to(memory_format=torch.channels_last)
        wanted = outputs_of(_dense(exact), _checked(frames, others))
    model = copy.deepcopy(exact).to(dtype) if on_gpu else exact
    frames, others = ([f.to(dtype) for f in some] for some in (frames, others))
    dense = _dense(model)
    settings = {} if on_gpu else {"threads": threads}
    start = time.monotonic()
    everywhere = deltaconvert.convert(model, frames[0], **settings)
    everywhere(others[0])
    if on_gpu:
        torch.cuda.synchronize()
    first_s = time.monotonic() - start
    error = worst(outputs_of(everywhere, _checked(frames, others)), wanted)
    moving = deltaconvert.convert(model, frames[0], threshold=THRESHOLD, threshold_unit="std",
                                  norm="rms", **settings)
    still = moving.new_stream()
    moving(frames[0])
    still(frames[0])
    taking_part = {"eager": (dense, others, 1), "everywhere": (everywhere, others, 1),
                   "moving": (moving, frames[1:], 2), "still": (still, frames[:1], 2)}
    extra: dict[str, Any] = {}
    if on_gpu:
        ms = {name: gpu_networks.frame_ms(run, _there_and_back(some) * (50 // len(some)), 1)
              for name, (run, some, _) in taking_part.items()}
        extra = {"graph": _graph_ms(model, others), "no_graph": _no_graph(moving),
                 "dense_error": worst(outputs_of(dense, _checked(frames, others)), wanted)}
    else:
        turns = [_turn(name, run, some, untimed)
                 for name, (run, some, untimed) in taking_part.items()]
        ms = {name: statistics.median(flat(rounds))
              for name, rounds in take_turns(turns, ROUNDS).items()}
    return Figures(spec, **ms, needed=_needed(moving, frames), error=error, first_s=first_s,
                   whole=runs_whole(moving), **extra)


@cache
def frames_of(size: tuple[int, int], active: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return the clip, and pictures that have nothing in common; ``[1, 3, H, W]``."""
    return ([frame[None] for frame in synthetic(size, FRAMES, active_share=active, seed=0)],
            unrelated(size, lambda picture: picture[None]))


def build(spec: str, frames: Sequence[Tensor]) -> nn.Module:
    """Build a network with random weights and BatchNorm statistics from the clip.

    Two frames at a time: some gates have a norm of one pixel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = NETWORKS[spec]() if spec in NETWORKS else build_model(
            spec if ":" in spec else f"torchvision:{spec}")
    model = made.eval().to(frames[0].device)
    batch_norm_statistics(model, [torch.cat(pair) for pair in pairwise(frames[::3])])
    return model


def _dense(model: nn.Module) -> Callable[[Tensor], Any]:
    def run(frame: Tensor) -> Any:
        with torch.inference_mode():
            return model(frame.contiguous(memory_format=torch.channels_last))
    return run


def _checked(frames: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Return what outputs are compared for: frames that have nothing in common, and a clip."""
    return [*others[:2], *frames[::4]]


def outputs_of(run: Callable[[Tensor], Any], frames: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors that a network answers to each frame."""
    return [tensors(run(frame)) for frame in frames]


def worst(found: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> float:
    """Return the largest relative RMS over frames and outputs."""
    return max(relative_rms(one, other) for pair in zip(found, wanted, strict=True)
               for one, other in zip(*pair, strict=True))


def runs_whole(delta: deltaconvert.DeltaModule) -> tuple[str, ...]:
    """Return the functions of the nodes that run whole though their changes are local, or known.

    Those of unknown operators, of what runs by `reference` in another backend, and of local
    nodes without a kernel.
    """
    program = delta.stream.program
    assert program is not None
    return tuple(
        node.about.function_name for node in program.nodes if not node.about.aliases
        and (node.about.rule == "unknown" or node.fallback_reason or (
            node.about.rule == "local"
            and getattr(program.weights[node.about.name], "kind", "") == "whole")))


def _no_graph(delta: deltaconvert.DeltaModule) -> str:
    return str(delta.stream._state.runner.no_graph)


def _graph_ms(model: nn.Module, frames: Sequence[Tensor]) -> float:
    """Time the dense network in a CUDA graph; -1 where it cannot be captured."""
    frames = [f.contiguous(memory_format=torch.channels_last) for f in frames]
    try:
        with torch.inference_mode():
            return gpu_networks.frame_ms(gpu_networks.graphed(model, frames[0]), frames * 4, 2)
    except RuntimeError:
        return -1.0


def _needed(moving: deltaconvert.DeltaModule, frames: Sequence[Tensor]) -> float:
    work = Work()
    moving(frames[0])
    for frame in frames[1:]:
        moving(frame)
        work.add(moving.stream)
    total = work.total()
    return total.needed / total.dense


def _turn(name: str, run: Any, frames: Sequence[Tensor], untimed: int) -> Turn:
    """Return a turn of four timed frames, taken from a clip that goes forth and back."""
    order, count = _there_and_back(frames), 0

    def step() -> None:
        nonlocal count
        run(order[count % len(order)])
        count += 1

    return Turn(name, step, untimed, 4)


def _there_and_back(frames: Sequence[Tensor]) -> list[Tensor]:
    return [*frames, *frames[-2:0:-1]]


def table(made: Sequence[Figures]) -> str:
    """Lay out a row a network; columns of a GPU where there is one."""
    on_gpu = any(f.graph for f in made)
    rows = [("network", "eager", *(["graph"] if on_gpu else []), "moving", "over best", "needed",
             "equal", "everywhere", "of best", "error",
             *(["dense error", "first s", "whole"] if on_gpu else []))]
    rows += [(f.network, f"{f.eager:.3g}", *([f"{f.graph:.3g}"] if on_gpu else []),
              f"{f.moving:.3g}", f"{f.best / f.moving:.1f}x", f"{f.needed:.1%}",
              f"{f.still:.3f}" if on_gpu else f"{f.still:.2f}", f"{f.everywhere:.3g}",
              f"{f.everywhere / f.best:.2f}", f"{f.error:.0e}",
              *([f"{f.dense_error:.0e}", f"{f.first_s:.1f}", f.no_graph or _counted(f.whole)]
                if on_gpu else [])) for f in made]
    return text_table(rows)


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "-"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--active", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    parser.add_argument("--precision", choices=["float32", "tf32", "float16", "bfloat16"],
                        default="float16", help="on a GPU")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="after which no network is begun")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.size = tuple(options.size or SIZES[options.device])
    if options.device == "cpu":
        options.precision = "float32"
    options.specs = options.specs or (SPECS + MORE if options.device == "cuda" else SPECS)
    return options


if __name__ == "__main__":
    main()
