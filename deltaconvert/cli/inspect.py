"""``deltaconvert inspect``: the graph, what runs dense and why, and the settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from deltaconvert.atomic import write_text
from deltaconvert.cli.frames import ModelFrames, dtype_of, example_frame
from deltaconvert.cli.inspect_parts import (
    add_work,
    describe_header,
    header_text,
    measure,
    work_text,
)
from deltaconvert.cli.options import JsonFile, flags_of
from deltaconvert.cli.output import UntilBroken, check_writable, say, write_json
from deltaconvert.cli.pictures import CLIP_HELP, Pictures
from deltaconvert.fallbacks import Fallback, fallbacks
from deltaconvert.files import load, load_structure, read_header
from deltaconvert.nodes import DeltaNode
from deltaconvert.pages.graph import IN_PLACE, as_dot, graph_page
from deltaconvert.program import Program
from deltaconvert.summary import operator_name
from deltaconvert.words import text_table

# What of each rule is told, most work first.
TITLES = {"unknown": "unknown operators, run whole and densely",
          "global": "run whole, and compared pixel by pixel",
          "local": "run by the reference backend, whole"}
DEFAULT_SIZE = (360, 640)


@flags_of(Pictures, "pictures")
def inspect(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    pictures: Pictures,
    header: Annotated[bool, typer.Option(
        "--header", help="Only what the file's header says, without compiling.")] = False,
    source: Annotated[str | None, typer.Option(
        metavar="CLIP", help=f"Run it, and show what changed at each node. {CLIP_HELP}")] = None,
    dot: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Write the graph for Graphviz.")] = None,
    html: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Write the graph as a page.")] = None,
    json: JsonFile = None,
) -> None:
    """Show every node with its rule, threshold, shape, share of the work and bytes of state."""
    check_writable(dot, html, json=json, read=[converted, source])
    if header:
        told = describe_header(read_header(converted)) | {"file": str(converted)}
        say(header_text(told))
        write_json(json, told)
        return
    # Only a clip needs the weights: the graph and its cost are in the header.
    delta = load_structure(converted) if source is None else load(converted)
    clip = None if source is None else pictures.open(source, delta.preprocessing)
    extent = clip.size if clip else pictures.extent(delta.preprocessing) or DEFAULT_SIZE
    frame = example_frame(delta, extent)
    program = delta.program(delta.signature([frame]), [frame])
    data = describe(program) | {"file": str(converted), "frame": list(frame.shape)}
    read = "" if clip else "; weights not read"
    text = f"{converted}, for frames of {'x'.join(map(str, frame.shape))}{read}\n\n{as_text(data)}"
    if clip is not None:
        frames = UntilBroken(ModelFrames(clip, pictures.preprocessing(delta.preprocessing),
                                         dtype_of(delta)))
        data |= {"clip": clip.name, **add_work(data["nodes"], measure(delta, frames))}
        text += f"\n\n{work_text(data)}"
    say(text)
    write_json(json, data)
    write_text(dot, as_dot(program, data["nodes"]) if dot else "")
    write_text(html, graph_page(program, data, text) if html else "")


def describe(program: Program) -> dict[str, Any]:
    """Return everything about a program as plain data."""
    total = sum(n.dense_multiply_adds for n in program.nodes)
    return {
        "nodes": [_node(node, program, total) for node in program.nodes],
        "fallbacks": [dataclasses.asdict(f) for f in fallbacks(program.nodes)],
        "multiply_adds": total, "state_bytes": program.plan.nbytes,
        "scratch_bytes": sum(program.plan.scratch.values()),
        "config": program.config.to_dict(),
    }


def _node(node: DeltaNode, program: Program, total: int) -> dict[str, Any]:
    about, spec = node.about, node.about.output
    inside = spec.name in program.plan.inside
    nbytes = 0 if inside or spec.shape is None or spec.dtype is None else (
        math.prod(spec.shape) * spec.dtype.itemsize)
    return {
        "node": about.name, "path": about.path, "source": about.source,
        "operator": operator_name(node), "rule": about.rule, "reason": about.reason,
        "runs_by": IN_PLACE if about.aliases else node.backend,
        "fallback_reason": node.fallback_reason, "threshold": about.threshold,
        "norm": about.norm, "shape": None if spec.shape is None else list(spec.shape),
        "multiply_adds": node.dense_multiply_adds,
        "share": node.dense_multiply_adds / total if total else 0.0,
        "state_bytes": nbytes + math.prod(spec.mask_shape),
    }


def as_text(data: dict[str, Any]) -> str:
    """Lay out what `describe` returned."""
    rows = [("node", "operator", "rule", "runs by", "threshold", "output", "work", "state kB")]
    rows += [(n["node"], n["operator"], n["rule"], n["runs_by"], f"{n['threshold']:g}",
              "-" if n["shape"] is None else "x".join(map(str, n["shape"])), f"{n['share']:.1%}",
              f"{n['state_bytes'] / 1e3:.1f}") for n in data["nodes"]]
    parts = [text_table(rows, align="l"), "", _footer(data)]
    for rule, title in TITLES.items():
        of_rule = sorted((f for f in data["fallbacks"] if f["rule"] == rule),
                         key=lambda f: -f["share"])
        if of_rule:
            parts += ["", f"{title}:", *(f"  {Fallback(**f)}" for f in of_rule)]
    settings = ", ".join(f"{name}={value}" for name, value in data["config"].items())
    return "\n".join([*parts, "", f"settings: {settings}"])


def _footer(data: dict[str, Any]) -> str:
    shares = {rule: sum(n["share"] for n in data["nodes"] if n["rule"] == rule)
              for rule in ("local", "global", "unknown")}
    said = ", ".join(f"{share:.2%} {rule}" for rule, share in shares.items())
    return (f"multiply-adds: {data['multiply_adds'] / 1e6:.0f} million a dense frame, {said}\n"
            f"state: {data['state_bytes'] / 1e6:.1f} MB a stream, of which working memory "
            f"{data['scratch_bytes'] / 1e6:.1f} MB")
