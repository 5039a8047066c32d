"""``deltaconvert demo``: makes a clip, converts, validates and reports; needs no files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import deltaconvert
from deltaconvert.calibrate import random_model
from deltaconvert.checking.report import Report
from deltaconvert.cli.options import JsonFile, parse_size, settings_as_flags
from deltaconvert.cli.output import check_writable, say, with_progress, write_json
from deltaconvert.cli.picture import Picture, watch
from deltaconvert.clips import Clip, synthetic
from deltaconvert.config import Config
from deltaconvert.errors import InputError
from deltaconvert.validate import validate
from deltaconvert.words import text_table

MODELS = ("resnet18", "mobilenet_v2")
PICTURED_FRAME = 6
# A pixel's noise, as RMS over three channels of one frame against another, is over this many
# times a channel's standard deviation in 1 of 40,000 pixels.
NOISE_MARGIN = 4.0


@settings_as_flags(only=("backend", "threads"))
def demo(
    config: dict[str, Any],
    model: Annotated[list[str] | None, typer.Option(
        metavar="SPEC", help=f"A model; repeats. Default: {', '.join(MODELS)}.")] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="The frames' size.")] = "360x640",
    frames: Annotated[int, typer.Option(min=2, metavar="N", help="How many frames.")] = 16,
    active: Annotated[float, typer.Option(
        help="Share of the pixels that change from frame to frame.")] = 0.03,
    noise: Annotated[float, typer.Option(
        help="Standard deviation of the sensor's noise; the values are 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(
        min=0, metavar="N", help="Of the clip and of the weights.")] = 0,
    threshold: Annotated[float, typer.Option(
        help="Of the second run, in standard deviations of each value.")] = 0.05,
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="The picture to write.")] = Path(
        "deltaconvert-demo.png"),
    json: JsonFile = None,
) -> None:
    """Make a clip, convert networks, compare them with the dense ones, and draw what changed."""
    check_writable(out, json=json)
    if out.suffix != ".png":
        raise InputError(f"--out {out}: the picture is a PNG; give it a name that ends in .png.")
    clip = synthetic(parse_size(size), frames, active_share=active, noise=noise, seed=seed)
    exact = Config(**config)
    held = exact.replace(threshold=threshold, threshold_unit="std", norm="rms",
                         input_threshold=NOISE_MARGIN * noise)
    say(_introduction(clip, active, noise, held))
    runs, picture = [], Picture(clip)
    for spec in model or MODELS:
        for run in _runs(spec, clip, seed, exact, held, picture):
            runs.append(run)
    say("\n" + table(runs))
    picture.save(out)
    say(f"\n{_reading(runs, noise)}\npicture: {out}")
    write_json(json, {"runs": [{"model": r.model, "label": r.label, **r.report.to_dict()}
                               for r in runs]})
    raise typer.Exit(0 if all(r.report.passed for r in runs) else 1)


class Run:
    """One model under one setting, validated."""

    def __init__(self, model: str, label: str, report: Report) -> None:
        """Keep what a row of the table needs."""
        self.model, self.label, self.report = model, label, report


def _runs(spec: str, clip: Clip, seed: int, exact: Config, held: Config,
          picture: Picture) -> list[Run]:
    batches = [frame[None] for frame in clip]
    dense = random_model(spec, seed, batches)
    runs = []
    for label, settings in (("0", exact), (f"{held.threshold:g} std", held)):
        delta = deltaconvert.convert(dense, batches[0], config=settings)
        report = validate(dense, delta, with_progress(
            batches, f"{spec}, threshold {label}", len(batches)))
        runs.append(Run(spec, label, report))
        picture.add(f"{spec}\nthreshold {label}", watch(delta, batches[:PICTURED_FRAME + 1]))
    return runs


def _introduction(clip: Clip, active: float, noise: float, held: Config) -> str:
    said = f", noise {noise:g}; inputs held within {held.input_threshold:g}" if noise else ""
    return (f"clip: {clip.length} frames of {clip.size[0]}x{clip.size[1]}, {active:.1%} of the "
            f"pixels change{said}\nmodels: random weights, BatchNorm statistics from the clip; "
            f"{torch.get_num_threads()} threads")


def table(runs: list[Run]) -> str:
    """Lay out one row a run."""
    rows = [("model", "threshold", "error", "frozen", "changed", "needed", "computed", "dense ms",
             "delta ms", "speed-up", "")]
    for run in runs:
        report = run.report
        worst = max(report.outputs, key=lambda o: o.relative_rms)
        rows.append((
            run.model, run.label, f"{worst.relative_rms:.1e}", f"{worst.frozen_relative_rms:.1e}",
            f"{report.update_ratio_nodes:.1%}", f"{report.needed:.1%}", f"{report.scheduled:.1%}",
            f"{report.speed.dense_ms:.1f}", f"{report.speed.delta_ms:.1f}",
            f"{report.speed.speedup:.2f}x", report.verdict))
    return text_table(rows)


def _reading(runs: list[Run], noise: float) -> str:
    lines = ["error: relative RMS against dense; frozen: that of an output that stays as in frame "
             "0;", "changed: mean share of a node's pixels; needed, computed: share of the dense "
             "multiply-adds."]
    if noise:
        lines.append("with noise, the dense outputs shiver with it and the converted ones hold it "
                     "back: that is part of the error.")
    for run in runs:
        lines += [str(breach) for breach in run.report.breaches[:1]]
        lines += [f"{run.model}, threshold {run.label}: {o.name}: {o.remark}"
                  for o in run.report.outputs if o.remark]
    return "\n".join(lines)
