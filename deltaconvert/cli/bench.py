"""``deltaconvert bench``: speed against dense, side by side, in one run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import deltaconvert
from deltaconvert.atomic import write_text, written_whole
from deltaconvert.bench import machine, networks, peers, plots, text
from deltaconvert.bench.pictures import unrelated
from deltaconvert.calibrate import random_model
from deltaconvert.checking.dense import StoredModel
from deltaconvert.checking.fidelity import Truth
from deltaconvert.checkpoints import apply_state_dict, read_checkpoint
from deltaconvert.cli.frames import ModelFrames
from deltaconvert.cli.options import (
    IgnoreSurplus,
    JsonFile,
    ModelArgs,
    ReportFile,
    TrustPickle,
    flags_of,
    parse_size,
    settings_as_flags,
)
from deltaconvert.cli.output import check_writable, note, say, write_json
from deltaconvert.cli.pictures import CLIP_HELP, Channels
from deltaconvert.clips import Clip, open_clip
from deltaconvert.config import Config
from deltaconvert.errors import InputError
from deltaconvert.files import load
from deltaconvert.model_specs import build_model, parse_model_args
from deltaconvert.pages.benchmark import benchmark_page

SETTINGS = tuple(field.name for field in dataclasses.fields(Config))


@dataclass(frozen=True)
class Timed(Channels):
    """Which frames are timed."""

    source: Annotated[str, typer.Option(metavar="CLIP", help=CLIP_HELP)] = "synthetic"
    size: Annotated[str | None, typer.Option(
        metavar="HxW", help="The frames' size; default: the clip's own, 360x640 where it is "
        "made.")] = None
    active: Annotated[float | None, typer.Option(
        metavar="SHARE", help="Of the synthetic clip's pixels, how many change from frame to "
        "frame; 0.05 unless said.")] = None
    frames: Annotated[int, typer.Option(
        min=networks.FEWEST_FRAMES, metavar="N", help="How many of the clip's frames.")] = 31
    start: Annotated[int, typer.Option(help="Index of the first frame.")] = 0
    stride: Annotated[int, typer.Option(help="Take every so many-th frame.")] = 1
    seed: Annotated[int, typer.Option(
        min=0, metavar="N", help="Of the clip and of random weights.")] = 0

    def open(self) -> Clip:
        """Open the source."""
        return open_clip(self.source, size=None if self.size is None else parse_size(self.size),
                         frames=self.frames, start=self.start, stride=self.stride, seed=self.seed,
                         active_share=self.active)


@settings_as_flags(only=SETTINGS)
@flags_of(Timed, "timed")
def bench(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", help="A .delta file, or torchvision:NAME (or NAME alone), timm:NAME, "
        "package.module:factory.")],
    config: dict[str, Any],
    timed: Timed,
    checkpoint: Annotated[Path | None, typer.Option(
        metavar="CKPT", help="Weights; without, they are random, and BatchNorm statistics come "
        "from the clip.")] = None,
    model_arg: ModelArgs = None,
    trust_pickle: TrustPickle = False,
    ignore_surplus: IgnoreSurplus = False,
    fidelity: Annotated[bool, typer.Option(
        "--fidelity", help="Find the thresholds that save most while every frame is within 1 % "
        "of the output's RMS, and a tenth of a frozen output's error.")] = False,
    tolerance: Annotated[float | None, typer.Option(
        help="Largest relative RMS error of a frame; 1e-5 where nothing is held back.")] = None,
    against: Annotated[str | None, typer.Option(
        metavar="NAME,NAME", help=f"Dense runtimes, of {', '.join(peers.NAMES)}; eager is always "
        "there. Default: all that are installed.")] = None,
    rounds: Annotated[int, typer.Option(
        min=1, metavar="N", help="How often they take turns.")] = networks.ROUNDS,
    plot: Annotated[Path | None, typer.Option(
        metavar="PNG", help="Draw where a frame's time goes.")] = None,
    json: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Time a converted network beside the dense runtimes, after checking that it is right."""
    check_writable(plot, report, json=json, read=[model, timed.source, checkpoint])
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"--plot {plot}: the picture is a PNG; give it a name that ends in .png.")
    clip = timed.open()
    loaded = load(model) if Path(model).suffix == ".delta" else None
    if loaded is not None and (checkpoint is not None or model_arg):
        raise InputError("--checkpoint and --model-arg are for a model's source; a .delta file "
                         "holds its weights.")
    preprocessing = timed.preprocessing(loaded.preprocessing if loaded else None)
    held = list(ModelFrames(clip, preprocessing))
    networks.check_length(held)
    threads = config.get("threads") or torch.get_num_threads()
    torch.set_num_threads(threads)
    config = {name: value for name, value in config.items() if value != {}}
    if loaded is None:
        dense = _dense(model, checkpoint, model_arg, timed.seed, held,
                       trust_pickle=trust_pickle, ignore_surplus=ignore_surplus)
        delta = deltaconvert.convert(dense, held[0], config=Config(**config))
    else:
        delta = loaded.with_config(loaded.config.replace(**config))
        dense = StoredModel(delta)
    case = networks.Case(
        dense, delta, held, unrelated(clip.size, lambda picture: preprocessing(picture)[None]),
        peers.prepare(dense, held[0], threads, _names(against), note))
    result = networks.measure(case, judge=Truth(dense, held) if fidelity else None,
                              tolerance=tolerance, rounds=rounds, say=note)
    _tell({"model": model, "clip": clip.name, "size": list(clip.size),
           "active_share": result.report.update_ratio_input, "frames": len(held),
           "seed": timed.seed, "machine": machine.describe(threads), **result.to_dict()},
          result.report.settings, plot, json, report)


def _tell(data: dict[str, Any], settings: str, plot: Path | None, json: Path | None,
          report: Path | None) -> None:
    height, width = data["size"]
    said = [f"{data['model']}, {data['frames']} frames of {data['clip']} {height}x{width}",
            machine.in_words(data["machine"]), settings]
    say("\n".join([*said, "", text.network(data)]))
    if plot is not None:
        figure = plots.time_by_kind({data["model"]: data})
        with written_whole(plot) as partial:
            figure.savefig(partial, format="png", dpi=110)
    write_json(json, data)
    write_text(report, benchmark_page(data, "; ".join(said)) if report else "")


def _names(against: str | None) -> list[str] | None:
    return None if against is None else [n.strip() for n in against.split(",") if n.strip()]


def _dense(model: str, checkpoint: Path | None, arguments: list[str] | None, seed: int,
           frames: list[Tensor], *, trust_pickle: bool, ignore_surplus: bool) -> nn.Module:
    given = parse_model_args(arguments or ())
    if checkpoint is None:
        return random_model(model, seed, frames, given)
    dense = build_model(model if ":" in model else f"torchvision:{model}", given)
    found = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    apply_state_dict(dense, found.state, ignore_surplus=ignore_surplus)
    return dense
