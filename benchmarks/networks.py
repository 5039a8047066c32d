"""Whole networks on clips of more and more activity, beside the dense runtimes, in one run.

    python benchmarks/networks.py     # what make bench runs
    python benchmarks/networks.py [--json FILE] [--plots FOLDER] [--network NAME]
        [--active 0.01 0.03 ...] [--frames 25] [--against eager,onnxruntime,...] [--threads 2]
        [--dtype bfloat16]

Each network is prepared once for all its clips. Thresholds are searched for each clip, as
`deltaconvert bench --fidelity` does: the largest at which every frame is within 1 % of the
output's RMS, and a tenth of what an output frozen at frame 0 is off; for the detector, the
largest at which its boxes agree with those of dense. Results are checked
before they are timed. How to read the figures: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltaconvert
from deltaconvert.atomic import written_whole
from deltaconvert.bench import machine, networks, peers, plots, text
from deltaconvert.bench.pictures import unrelated
from deltaconvert.calibrate import random_model
from deltaconvert.checking.fidelity import Judge, Run, Truth
from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.cli.frames import ModelFrames
from deltaconvert.cli.output import check_writable, write_json
from deltaconvert.clips import Clip, open_clip, synthetic
from deltaconvert.config import Config, Precision
from deltaconvert.model_specs import build_model
from deltaconvert.preprocessing import ChannelOrder, Preprocessing
from deltaconvert.words import text_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for examples/
DATA = Path(os.environ.get("DELTACONVERT_DATA", ROOT.parent / "shared" / "data"))
START = time.perf_counter()
# Neighbouring frames of the clip agree with each other to 0.88.
LEAST_F1, IOU = 0.88, 0.5


@dataclass(frozen=True)
class Network:
    """A model, the clips it is measured on, and what it takes.

    Args:
        spec: as `build_model` takes it.
        size: H and W.
        active: shares of the synthetic clip's pixels that change.
        clip: a file in the data folder in the place of the synthetic clip.
        weights: a file in the data folder; random, where there is none.
        order: of the channels.
        settings: of the conversion.
        judge: what the search for the threshold holds a frame's output against: the dense
            output's numbers, or the boxes in it.
    """

    spec: str
    size: tuple[int, int] = (360, 640)
    active: tuple[float, ...] = (0.03,)
    clip: str = ""
    weights: str = ""
    order: ChannelOrder = "rgb"
    settings: dict[str, Any] = field(default_factory=dict)
    judge: Callable[[nn.Module, Sequence[Tensor]], Judge] = Truth


class Boxes:
    """A judge of FastestDet: the boxes that it finds against those of dense, as F1."""

    allowed = 1 - LEAST_F1
    tolerance = None
    goal = f"an F1 of at least {LEAST_F1:g} to the boxes of dense"

    def __init__(self, model: nn.Module, frames: Sequence[Tensor]) -> None:
        from examples.fastestdet import decode, pairwise_iou

        self.decode, self.pairwise_iou, self.frames = decode, pairwise_iou, frames
        with torch.inference_mode():
            self.expected = [decode(model(frame))[0] for frame in frames]

    def worst_error(self, run: Run, stop_above: float = 1.0,
                    most_frames: int | None = None) -> float:
        """Return 1 - F1 over the clip: 1 - 2 x matched / (found + expected)."""
        found = [self.decode(run(frame))[0] for frame in self.frames[:most_frames]]
        matched = sum(map(self._matched, found, self.expected))
        whole = sum(map(len, found)) + sum(map(len, self.expected[:len(found)]))
        return 1 - 2 * matched / whole if whole else 0.0

    def _matched(self, found: Tensor, expected: Tensor) -> int:
        """Pair boxes of one class, the best scores first, each at most once."""
        iou = self.pairwise_iou(torch.cat((found[:, :4], expected[:, :4])))
        iou = iou[:len(found), len(found):] * (found[:, None, 5] == expected[None, :, 5])
        pairs = 0
        for row in iou:
            if len(row) and float(row.max()) > IOU:
                iou[:, int(row.argmax())] = 0
                pairs += 1
        return pairs


NETWORKS = {
    "ResNet-50": Network("torchvision:resnet50", active=(0.01, 0.03, 0.05)),
    "Pose-ResNet-50": Network("examples.pose_resnet:pose_resnet50", size=(352, 640)),
    "HRNet-W32": Network("timm:hrnet_w32", size=(352, 640)),
    "MobileNetV3-Large": Network("torchvision:mobilenet_v3_large"),
    "FastestDet": Network(
        "examples.fastestdet:FastestDet", size=(352, 640), clip="highway.mp4",
        weights="fastestdet.pth", order="bgr", judge=Boxes,
        settings={"input_threshold": 2 / 255, "input_test": "block"}),
}


def main() -> None:
    """Run what is asked for, print it and write it."""
    options = parse()
    check_writable(options.json)
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    about = machine.describe(options.threads)
    print(machine.in_words(about))
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in options.network or NETWORKS:
        network = NETWORKS[name]
        missing = [f for f in (network.clip, network.weights) if f and not (DATA / f).is_file()]
        if missing:
            print(f"\n{name} is left out: no {', '.join(missing)} in the data folder; set "
                  "DELTACONVERT_DATA")
            continue
        runs[name] = Bench(name, network, options).run()
    print(f"\n{overview(runs)}")
    write_json(options.json, {"machine": about, "networks": runs})
    if options.plots:
        draw(runs, options.plots)


class Bench:
    """One network, prepared once for all its clips."""

    def __init__(self, name: str, network: Network, options: argparse.Namespace) -> None:
        self.name, self.network, self.options = name, network, options
        self.clips = ([self._file()] if network.clip else
                      [synthetic(network.size, options.frames, active_share=share, seed=0)
                       for share in options.active or network.active])
        self.model = self._model()
        frames = self._frames(self.clips[0])
        self.delta = deltaconvert.convert(self.model, frames[0], config=Config(
            **{"threads": options.threads, "dtype": options.dtype, **network.settings}))
        wanted = None if options.against is None else options.against.split(",")
        self.peers = peers.prepare(self.model, frames[0], options.threads, wanted,
                                   lambda line: say(f"{name}: {line}"))

    def run(self) -> list[dict[str, Any]]:
        """Measure every clip; print each as it is known."""
        return [self._measured(clip) for clip in self.clips]

    def _measured(self, clip: Clip) -> dict[str, Any]:
        case = networks.Case(self.model, self.delta, self._frames(clip), self._unrelated(),
                             self.peers)
        result = networks.measure(case, judge=self.network.judge(self.model, case.frames),
                                  rounds=self.options.rounds, say=say)
        active = result.report.update_ratio_input
        data = {"model": self.network.spec, "clip": clip.name, "size": list(clip.size),
                "active_share": active, "frames": len(case.frames), **result.to_dict()}
        print(f"\n{self.name}, {clip.name} {clip.size[0]}x{clip.size[1]}, {active:.1%} active; "
              f"{result.report.settings}\n\n{text.network(data)}", flush=True)
        say("done")
        return data

    def _file(self) -> Clip:
        return open_clip(DATA / self.network.clip, size=self.network.size,
                         frames=self.options.frames)

    def _frames(self, clip: Clip) -> list[Tensor]:
        return list(ModelFrames(clip, self.preprocessing))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.network.order)

    def _unrelated(self) -> list[Tensor]:
        return unrelated(self.network.size, lambda picture: self.preprocessing(picture)[None])

    def _model(self) -> nn.Module:
        """Build it; without weights, BatchNorm statistics come from the busiest clip."""
        if not self.network.weights:
            return random_model(self.network.spec, 0, self._frames(self.clips[-1]))
        model = build_model(self.network.spec)
        apply_state_dict(model, read_checkpoint(DATA / self.network.weights).state)
        return model


def say(line: str) -> None:
    print(f"{time.perf_counter() - START:6.0f} s  {line}", file=sys.stderr, flush=True)


def overview(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Lay out one row a run."""
    rows = [("network", "active", "threshold", "error", "frozen", "needed", "best dense", "ms",
             "converted", "speed-up", "over eager", "over bf16", "efficiency", "equal", "unrelated",
             "state")]
    for name, points in runs.items():
        for run in points:
            best = run["runtimes"][run["best_dense_fp32"]]["ms"]["median"]
            bf16 = run["speedup_over"].get("openvino-bf16")
            search = run["threshold_search"]
            rows.append((
                name, f"{run['active_share']:.1%}",
                f"{search['threshold']:g}" if search else "given",
                f"{run['fidelity_rms']:.2%}", f"{run['frozen_rms']:.1%}",
                f"{run['needed_share']:.1%}", run["best_dense_fp32"], f"{best:.1f}",
                f"{run['ms']:.1f}", f"{run['speedup_over_best_dense_fp32']:.2f}x",
                f"{run['speedup_over_eager']:.2f}x", "-" if bf16 is None else f"{bf16:.2f}x",
                f"{run['efficiency']:.2f}", f"{run['still']['over_eager']:.2%}",
                f"{run['unrelated']['over_eager']:.2f}", f"{run['state_over_activations']:.2f}"))
    return (text_table(rows) + "\nspeed-up: over the best dense fp32; equal, unrelated: time of "
            "such a frame over eager's;\nstate: over the bytes of all activations of a dense frame")


def draw(runs: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write the pictures."""
    labelled = {f"{name}, {run['active_share']:.1%}": run
                for name, points in runs.items() for run in points}
    swept = {name: points for name, points in runs.items() if len(points) > 1}
    figures = {"time_by_kind.png": plots.time_by_kind(labelled) if labelled else None,
               "speedup.png": plots.speedup(swept) if swept else None}
    for file, figure in figures.items():
        if figure is not None:
            with written_whole(folder / file) as partial:
                figure.savefig(partial, format="png", dpi=100)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=NETWORKS, help="repeats")
    parser.add_argument("--active", type=float, nargs="+",
                        help="shares of the synthetic clip's pixels that change")
    parser.add_argument("--dtype", choices=typing.get_args(Precision),
                        help="of the converted network's maps and weights")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--against", metavar="NAME,NAME", help=", ".join(peers.NAMES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plots", type=Path, help="draw them into this folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
