"""``deltaconvert tune``: thresholds for a fidelity that the user names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

import deltaconvert
from deltaconvert.cli.frames import ModelFrames, dtype_of
from deltaconvert.cli.options import JsonFile, flags_of, settings_as_flags
from deltaconvert.cli.output import check_writable, note, say, write_json
from deltaconvert.cli.pictures import CLIP_HELP, Pictures
from deltaconvert.files import load, save

MOST_FRAMES = 24  # unless told: they are kept in memory, and run some hundred times


@settings_as_flags(only=("backend", "threads", "input_threshold", "input_test", "nodes"))
@flags_of(Pictures, "pictures")
def tune(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    source: Annotated[str, typer.Option(metavar="CLIP", help=CLIP_HELP)],
    out: Annotated[Path, typer.Option(
        "--out", "-o", metavar="TUNED", help="The file to write; may be the same.")],
    pictures: Pictures,
    config: dict[str, Any],
    error: Annotated[float, typer.Option(
        help="The most that a frame may be off: RMS error over the output's RMS.")] = 0.01,
    rounds: Annotated[int, typer.Option(
        min=0, metavar="N", help="How often thresholds are moved against each other; 0: one for "
        "all nodes.")] = 2,
    json: JsonFile = None,
) -> None:
    """Find the thresholds that save most on a clip within an error; exit 1 where there are none.

    The first 24 frames are taken unless --frames says otherwise.
    """
    check_writable(out, json=json, read=[source])
    check_writable(json=json, read=[converted])
    stored = load(converted)
    pictures = dataclasses.replace(pictures, frames=pictures.frames or MOST_FRAMES)
    clip = pictures.open(source, stored.preprocessing)
    given = {name: value for name, value in config.items() if value != {}}
    delta = stored.with_config(stored.config.replace(**given))
    frames = ModelFrames(clip, pictures.preprocessing(delta.preprocessing), dtype_of(delta))
    found = deltaconvert.tune(delta, frames, error=error, rounds=rounds,
                              say=note)
    save(found.delta.with_config(found.delta.config.replace(
        backend=stored.config.backend, threads=stored.config.threads)), out)
    said = f"{converted} on {clip.name} {clip.size[0]}x{clip.size[1]}"
    say(f"{said}, {found}\n\nwrote {out}; see how it does on another clip: "
        f"deltaconvert validate {out} --source CLIP --tolerance {error:g}")
    write_json(json, {"converted": str(converted), "out": str(out), "clip": clip.name,
                      "size": list(clip.size), **found.to_dict()})
    raise typer.Exit(0 if found.passed else 1)
