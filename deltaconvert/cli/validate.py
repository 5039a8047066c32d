"""``deltaconvert validate``: dense against converted, frame by frame."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from deltaconvert.cli.frames import ModelFrames, dtype_of
from deltaconvert.cli.options import (
    JsonFile,
    ModelArgs,
    parse_numbers,
    parse_size,
    settings_as_flags,
)
from deltaconvert.cli.output import check_writable, with_progress, write_json
from deltaconvert.cli.sources import read_source
from deltaconvert.clips import open_clip
from deltaconvert.errors import InputError
from deltaconvert.files import load
from deltaconvert.validate import validate as compare

CLIP_HELP = "A video file, a folder or glob of pictures, or 'synthetic'."


@settings_as_flags(only=("backend", "threads"))
def validate(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    source: Annotated[str, typer.Option(metavar="CLIP", help=CLIP_HELP)],
    config: dict[str, Any],
    size: Annotated[str | None, typer.Option(
        metavar="HxW", help="Resize the frames; default: as they are.")] = None,
    frames: Annotated[int | None, typer.Option(help="Most frames to take.")] = None,
    start: Annotated[int, typer.Option(help="Index of the first frame.")] = 0,
    stride: Annotated[int, typer.Option(help="Take every so many-th frame.")] = 1,
    channel_order: Annotated[str, typer.Option(
        metavar="rgb|bgr|gray", help="What the model takes; gray is one channel.")] = "rgb",
    mean: Annotated[str | None, typer.Option(
        metavar="M,M,M", help="Taken off the frames, whose values are 0 to 1.")] = None,
    std: Annotated[str | None, typer.Option(
        metavar="S,S,S", help="What the frames are then divided by.")] = None,
    model: Annotated[str | None, typer.Option(
        metavar="SPEC", help="Compare with the original, not with the stored dense graph.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(
        metavar="CKPT", help="The original: weights with --model, or a program (.pt2).")] = None,
    model_arg: ModelArgs = None,
    tolerance: Annotated[float | None, typer.Option(
        help="Largest relative RMS error of a frame; 1e-5 where nothing is held back.")] = None,
    max_abs: Annotated[float | None, typer.Option(
        help="Largest error of any number.")] = None,
    json: JsonFile = None,
) -> None:
    """Run the dense and the converted network side by side over a clip; exit 1 if they differ."""
    check_writable(json)
    clip = open_clip(source, size=None if size is None else parse_size(size), frames=frames,
                     start=start, stride=stride)
    delta = load(converted)
    delta = delta.with_config(delta.config.replace(**config))
    batches = ModelFrames(clip, channel_order, parse_numbers("--mean", mean),
                          parse_numbers("--std", std), dtype_of(delta))
    original = _original(model, checkpoint, model_arg)
    original = None if original is None else original.to(dtype_of(delta))
    against = "the stored dense graph" if original is None else " with ".join(
        str(part) for part in (model, checkpoint) if part is not None)
    report = compare(
        original, delta, with_progress(batches, "validating", clip.length if _bar() else None),
        tolerance=tolerance, max_abs=max_abs)
    typer.echo(f"{converted} against {against}, on {clip.name} {clip.size[0]}x{clip.size[1]}")
    typer.echo(report)
    write_json(json, {"converted": str(converted), "against": against, "clip": clip.name,
                      "size": list(clip.size), **report.to_dict()})
    raise typer.Exit(0 if report.passed else 1)


def _bar() -> bool:
    """Whether a bar is shown; only then is it worth reading a video through for its length."""
    return sys.stderr.isatty()


def _original(spec: str | None, checkpoint: Path | None, arguments: list[str] | None,
              ) -> nn.Module | None:
    if checkpoint is None:
        if spec is not None:
            raise InputError("--model and --checkpoint go together: the original is a model's "
                             "source and its weights. Without both, the stored dense graph is "
                             "compared.")
        return None
    return read_source(checkpoint, spec, arguments).model
