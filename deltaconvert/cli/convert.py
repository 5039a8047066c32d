"""``deltaconvert convert``: a checkpoint into a ``.delta`` file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

import deltaconvert
from deltaconvert.cli.frames import example_frame
from deltaconvert.cli.options import (
    IgnoreSurplus,
    JsonFile,
    ModelArgs,
    TrustPickle,
    flags_of,
    parse_size,
    settings_as_flags,
)
from deltaconvert.cli.output import check_writable, complain, say, write_json
from deltaconvert.cli.pictures import Channels
from deltaconvert.cli.sources import read_source
from deltaconvert.config import Config
from deltaconvert.errors import ConfigError, FrameError, InputError, TraceError
from deltaconvert.files import save
from deltaconvert.likely_frames import likely_frames
from deltaconvert.model_specs import preprocessing_of
from deltaconvert.module import DeltaModule
from deltaconvert.preprocessing import Preprocessing
from deltaconvert.program import Program
from deltaconvert.summary import speed_in_words
from deltaconvert.words import count

USUAL_SIZE = 224, 224  # where nothing says another


@settings_as_flags()
@flags_of(Channels, "channels")
def convert(
    checkpoint: Annotated[Path, typer.Argument(
        metavar="CKPT", help="A state dict, a training checkpoint that holds one, or a program "
        "of torch.export (.pt2).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write.")],
    config: Config,
    channels: Channels,
    model: Annotated[str | None, typer.Option(
        metavar="SPEC", help="torchvision:NAME, timm:NAME or package.module:factory; a program "
        "needs none.")] = None,
    model_arg: ModelArgs = None,
    trust_pickle: TrustPickle = False,
    ignore_surplus: IgnoreSurplus = False,
    size: Annotated[str | None, typer.Option(
        metavar="HxW", help="A frame's size: checks at once that the model takes it. One whose "
        "code branches on shapes needs it, and takes no other.")] = None,
    strict: Annotated[bool, typer.Option(
        "--strict", help="Refuse operators that would run whole and densely; needs --size.")
    ] = False,
    json: JsonFile = None,
) -> None:
    """Compile a checkpoint into a .delta file, which needs no model source to run."""
    if strict and size is None:
        raise InputError("--strict needs --size HxW: what runs how is known for a size.")
    extent = None if size is None else parse_size(size)
    check_writable(out, json=json, read=[checkpoint])
    source = read_source(checkpoint, model, model_arg, trust_pickle=trust_pickle,
                         ignore_surplus=ignore_surplus)
    _warn_of_nan(source.model, checkpoint)
    preprocessing, whose = _preprocessing(channels, model, source.model)
    def converted(*frames: Tensor) -> DeltaModule:
        return deltaconvert.convert(source.model, frames, config=config, strict=strict,
                                    preprocessing=preprocessing)

    delta = _first_traced(converted, source.model, extent)
    if extent is None and delta.traced.is_guess:
        raise InputError(f"{type(source.model).__name__}'s code branches on shapes, and a file "
                         "holds no code: say for frames of which size it is to be, --size HxW.")
    program = None
    if extent is not None:
        frame = example_frame(delta, extent)
        program = delta.program(delta.signature([frame]), [frame])
    elif config.nodes:
        _check_nodes(delta, (preprocessing and preprocessing.size) or USUAL_SIZE)
    save(delta, out)
    data = {"checkpoint": str(checkpoint), "entry": source.entry, "prefix": source.prefix,
            "program": source.is_program, "out": str(out), "bytes": out.stat().st_size,
            "preprocessing": preprocessing and preprocessing.to_dict(),
            **_described(delta, program)}
    say(_text(data, source.weights, f"{preprocessing} ({whose})",
              preprocessing.size_in_words if preprocessing else ""))
    write_json(json, data)


def _first_traced(converted: Callable[..., DeltaModule], model: nn.Module,
                  extent: tuple[int, int] | None) -> DeltaModule:
    """Convert a model, for a size where it takes no other.

    Raises:
        TraceError: the reason of the model itself.
    """
    try:
        return converted()
    except TraceError:
        for frames in likely_frames(model, [extent]) if extent else ():
            try:
                return converted(frames)
            except TraceError:
                continue
        raise


def _warn_of_nan(model: nn.Module, checkpoint: Path) -> None:
    """Say so where training diverged: the outputs of such weights are no numbers either."""
    names = [name for name, tensor in model.state_dict().items()
             if isinstance(tensor, Tensor) and bool(tensor.isnan().any())]
    if names:
        complain(f"warning: {checkpoint} has NaN in {count(len(names), 'tensor')}: "
                 f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")


def _check_nodes(delta: DeltaModule, size: tuple[int, int]) -> None:
    """Refuse settings of nodes that are not there, as far as that is known without a size.

    Raises:
        ConfigError: naming the nodes most like it.
    """
    known = [(n.name, n.meta.get("path", "")) for n in delta.graph.nodes if n.op != "output"]
    try:
        delta.config.check_nodes(known)
    except ConfigError as unknown:
        try:  # some nodes come with a size
            frame = example_frame(delta, size)
            delta.program(delta.signature([frame]), [frame])
        except (FrameError, InputError) as error:
            raise unknown from (None if isinstance(error, ConfigError) else error)


def _preprocessing(channels: Channels, spec: str | None, model: nn.Module
                   ) -> tuple[Preprocessing | None, str]:
    """Settle how pictures become frames, and who says so."""
    preset = None if spec is None else preprocessing_of(spec, model)
    if spec is None or preset is None:
        return channels.preprocessing(None), (
            "as given" if channels.given else "--channel-order, --mean and --std set others")
    if channels.given:
        plain = Preprocessing()
        return channels.preprocessing(dataclasses.replace(
            preset, order=plain.order, mean=plain.mean, std=plain.std)), "as given"
    return preset, f"the preset of {spec.partition(':')[0]}; --mean 0 --std 1 for none"


def _described(delta: deltaconvert.DeltaModule, program: Program | None) -> dict[str, Any]:
    calls = [n for n in delta.graph.nodes if n.op.startswith("call")]
    unknown = None if program is None else [
        {"node": n.about.name, "reason": n.about.reason, "source": n.about.source}
        for n in program.nodes if n.about.rule == "unknown"]
    return {"operators": len(calls), "parameters": sum(p.numel() for p in delta.parameters()),
            "unknown": unknown, "speed": "" if program is None else speed_in_words(program.nodes),
            "config": delta.config.to_dict()}


def _text(data: dict[str, Any], weights: str, frames: str, size: str) -> str:
    lines = [f"weights   {data['checkpoint']}: {weights}",
             f"model     {data['operators']} operators, {data['parameters'] / 1e6:.2f} million "
             "parameters", f"frames    {frames}"]
    if size:
        lines.append(f"size      the weights were evaluated at {size}; frames keep their own, or "
                     "--size model")
    if data["unknown"] is not None:
        lines.append(f"unknown   {count(len(data['unknown']), 'operator')}, run whole and densely")
        lines += [f"          {u['node']}: {u['reason']} ({u['source'] or 'line unknown'})"
                  for u in data["unknown"]]
    if data["speed"]:
        lines.append(f"speed     {data['speed']}")
    return "\n".join([*lines, f"wrote     {data['out']}, {data['bytes'] / 1e6:.1f} MB"])
