"""``deltaconvert validate``: dense against converted, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from deltaconvert.atomic import write_text
from deltaconvert.checking.bisect import bisect as find_first
from deltaconvert.cli.frames import ModelFrames, dtype_of
from deltaconvert.cli.options import (
    IgnoreSurplus,
    JsonFile,
    ModelArgs,
    ReportFile,
    TrustPickle,
    flags_of,
    settings_as_flags,
)
from deltaconvert.cli.output import (
    UntilBroken,
    check_writable,
    complain,
    say,
    shows_progress,
    verdict,
    with_progress,
    write_json,
)
from deltaconvert.cli.pictures import CLIP_HELP, Pictures
from deltaconvert.cli.sources import read_source
from deltaconvert.errors import InputError
from deltaconvert.files import load
from deltaconvert.pages.validation import validation_page
from deltaconvert.validate import Limit
from deltaconvert.validate import validate as compare


@settings_as_flags(only=("backend", "threads"))
@flags_of(Pictures, "pictures")
def validate(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    source: Annotated[str, typer.Option(metavar="CLIP", help=CLIP_HELP)],
    pictures: Pictures,
    config: dict[str, Any],
    model: Annotated[str | None, typer.Option(
        metavar="SPEC", help="Compare with the original, not with the stored dense graph.")] = None,
    baseline: Annotated[Path | None, typer.Option(
        "--baseline", "--checkpoint", metavar="CKPT", help="The original: weights with --model, "
        "or a program (.pt2).")] = None,
    model_arg: ModelArgs = None,
    trust_pickle: TrustPickle = False,
    ignore_surplus: IgnoreSurplus = False,
    tolerance: Annotated[list[str] | None, typer.Option(
        metavar="[OUTPUT=]NUMBER", help="Largest relative RMS error of a frame; 1e-5 where "
        "nothing is held back. Repeats, for single outputs.")] = None,
    max_abs: Annotated[list[str] | None, typer.Option(
        metavar="[OUTPUT=]NUMBER", help="Largest error of any number; likewise.")] = None,
    bisect: Annotated[bool, typer.Option(
        "--bisect", help="Check every node of every frame, up to the first that breaks the law.")
    ] = False,
    json: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Run the dense and the converted network side by side over a clip; exit 1 if they differ."""
    check_writable(report, json=json, read=[converted, source, baseline])
    allowed = parse_limits("--tolerance", tolerance)
    allowed_abs = parse_limits("--max-abs", max_abs)
    delta = load(converted)
    clip = pictures.open(source, delta.preprocessing)
    delta = delta.with_config(delta.config.replace(**config))
    frames = ModelFrames(clip, pictures.preprocessing(delta.preprocessing), dtype_of(delta))
    original = _original(model, baseline, model_arg, dtype_of(delta), trust_pickle=trust_pickle,
                         ignore_surplus=ignore_surplus)
    against = "the stored dense graph" if original is None else " with ".join(
        str(part) for part in (model, baseline) if part is not None)
    until_broken = UntilBroken(frames)
    # Only for a bar is it worth reading a video through for its length.
    length = clip.length if shows_progress() else None
    found = compare(original, delta, with_progress(until_broken, "validating", length),
                    tolerance=allowed, max_abs=allowed_abs)
    said = f"{converted} against {against}, on {clip.name} {clip.size[0]}x{clip.size[1]}"
    data = {"converted": str(converted), "against": against, "clip": clip.name,
            "size": list(clip.size), "preprocessing": frames.preprocessing.to_dict(),
            "broken": str(until_broken.error or ""), **found.to_dict()}
    say(f"{said}\n{verdict(str(found))}")
    if bisect:
        first = find_first(delta, UntilBroken(frames))
        data["bisect"] = first.to_dict()
        say(f"\n{first}")
    write_json(json, data)
    write_text(report, validation_page(found, said) if report else "")
    if until_broken.error is not None:
        complain(f"error: {until_broken.error}")
    raise typer.Exit(1 if not found.passed else 2 if until_broken.error else 0)


def parse_limits(flag: str, items: Sequence[str] | None) -> Limit:
    """Read ``NUMBER`` for all outputs, or ``OUTPUT=NUMBER`` for some.

    Raises:
        InputError: naming the item that is neither, or both given together.
    """
    by_output: dict[str, float] = {}
    for item in items or ():
        name, _, number = item.rpartition("=")
        try:
            by_output[name] = float(number)
        except ValueError:
            raise InputError(f"{flag} {item!r}: give a number, or OUTPUT=NUMBER.") from None
    if "" not in by_output:
        return by_output or None
    if len(by_output) > 1:
        raise InputError(f"{flag}: give one number for all outputs, or OUTPUT=NUMBER for each.")
    return by_output[""]


def _original(spec: str | None, checkpoint: Path | None, arguments: list[str] | None,
              dtype: torch.dtype, **reading: bool) -> nn.Module | None:
    if checkpoint is None:
        if spec is not None:
            raise InputError("--model and --baseline go together: the original is a model's "
                             "source and its weights. Without both, the stored dense graph is "
                             "compared.")
        return None
    return read_source(checkpoint, spec, arguments, **reading).model.to(dtype)
