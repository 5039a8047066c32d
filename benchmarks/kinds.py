"""Networks of many kinds, beside eager PyTorch: that no kind is left out, and nothing is slow.

    python -m benchmarks.kinds [SPEC ...] [--size 352 640] [--active 0.03] [--threads 2]
        [--json FILE]

Three figures for each: a frame of the synthetic clip, at a threshold of 0.02 standard deviations;
a frame equal to the last; and frames of which everything differs, at threshold 0. All of them
take turns with eager channels_last. Weights are random and seeded, BatchNorm statistics from the
clip. Outputs of the unrelated frames are compared with dense first. Without arguments, the networks
of the table in docs/performance.md; a spec is what `deltaconvert convert` takes, or a name of
`coverage_cases.NETWORKS`. Models of timm need ``make .venv/installed-timm``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
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
from deltaconvert.report import text_table
from deltaconvert.work import Work

SPECS = (
    "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "squeezenet1_1", "vgg11_bn",
    "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf",
    "convnext_tiny", "timm:ghostnet_100", "timm:repvgg_a0",
    "timm:fastvit_t8", "timm:dla34", "timm:ese_vovnet19b_dw", "timm:cspdarknet53",
    "timm:res2net50_26w_4s", "timm:resnest14d", "timm:skresnet18", "timm:edgenext_small",
    "timm:mobilevit_s", *NETWORKS)
THRESHOLD, FRAMES, ROUNDS = 0.02, 13, 3


@dataclass(frozen=True)
class Figures:
    """What was measured; medians of ms a frame.

    Args:
        eager, moving, still, everywhere: dense; and converted, see the module.
        needed: multiply-adds of the moving frames, over dense.
        error: the worst of the unrelated frames, relative RMS.
    """

    network: str
    eager: float
    moving: float
    still: float
    everywhere: float
    needed: float
    error: float


def main() -> None:
    """Measure each network and print the table."""
    options = parse()
    check_writable(options.json)
    torch.set_num_threads(options.threads)
    about = machine.describe(options.threads)
    print(machine.in_words(about))
    made = []
    for spec in options.specs:
        made.append(measure(spec, tuple(options.size), options.active, options.threads))
        print(f"{spec}: {made[-1].everywhere / made[-1].eager:.2f} of eager everywhere", flush=True)
    print(f"\n{table(made)}")
    write_json(options.json, {"machine": about, "networks": [asdict(f) for f in made]})


def measure(spec: str, size: tuple[int, int], active: float, threads: int) -> Figures:
    """Measure one network."""
    frames = [frame[None] for frame in synthetic(size, FRAMES, active_share=active, seed=0)]
    others = unrelated(size, lambda picture: picture[None])
    model = build(spec, frames).to(memory_format=torch.channels_last)
    moving = deltaconvert.convert(model, frames[0], threshold=THRESHOLD, threshold_unit="std",
                                  norm="rms", threads=threads)
    exact = deltaconvert.convert(model, frames[0], threads=threads)
    error = max(_error(model, exact, frame) for frame in others[:2])
    still = moving.new_stream()
    work = Work()

    def dense(frame: Tensor) -> None:
        with torch.inference_mode():
            model(frame.contiguous(memory_format=torch.channels_last))

    moving(frames[0])
    still(frames[0])
    times = take_turns([
        _turn("eager", dense, others, 1), _turn("everywhere", exact, others, 1),
        _turn("moving", moving, frames[1:], 2, lambda: work.add(moving.stream)),
        _turn("still", still, frames[:1], 2)], ROUNDS)
    ms = {name: statistics.median(flat(rounds)) for name, rounds in times.items()}
    total = work.total()
    return Figures(spec, **ms, needed=total.needed / total.dense, error=error)


def build(spec: str, frames: Sequence[Tensor]) -> nn.Module:
    """Build a network with random weights and BatchNorm statistics from the clip.

    Two frames at a time: some gates have a norm of one pixel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = NETWORKS[spec]() if spec in NETWORKS else build_model(
            spec if ":" in spec else f"torchvision:{spec}")
    model = made.eval()
    batch_norm_statistics(model, [torch.cat(pair) for pair in pairwise(frames[::3])])
    return model


def _turn(name: str, run: Any, frames: Sequence[Tensor], untimed: int, after: Any = None) -> Turn:
    """Return a turn of four timed frames, taken from a clip that goes forth and back."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    count = 0

    def step() -> None:
        nonlocal count
        run(there_and_back[count % len(there_and_back)])
        count += 1

    return Turn(name, step, untimed, 4, after)


def _error(model: nn.Module, delta: deltaconvert.DeltaModule, frame: Tensor) -> float:
    with torch.inference_mode():
        return max(relative_rms(found, expected) for found, expected in
                   zip(tensors(delta(frame)), tensors(model(frame)), strict=True))


def table(made: Sequence[Figures]) -> str:
    """Lay out a row a network."""
    rows = [("network", "eager", "moving", "over eager", "needed", "equal", "everywhere",
             "of eager", "error")]
    rows += [(f.network, f"{f.eager:.1f}", f"{f.moving:.1f}", f"{f.eager / f.moving:.1f}x",
              f"{f.needed:.1%}", f"{f.still:.2f}", f"{f.everywhere:.1f}",
              f"{f.everywhere / f.eager:.2f}", f"{f.error:.0e}") for f in made]
    return text_table(rows)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS, metavar="SPEC")
    parser.add_argument("--size", type=int, nargs=2, default=(352, 640), metavar=("H", "W"))
    parser.add_argument("--active", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
