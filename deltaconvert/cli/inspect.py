"""``deltaconvert inspect``: the graph, what runs dense and why, and the settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from deltaconvert.cli.frames import example_frame
from deltaconvert.cli.options import JsonFile, parse_size
from deltaconvert.cli.output import check_writable, say, write_json
from deltaconvert.files import load
from deltaconvert.nodes import DeltaNode
from deltaconvert.program import Program
from deltaconvert.report import text_table
from deltaconvert.summary import operator_name


def inspect(
    converted: Annotated[Path, typer.Argument(metavar="OUT", help="A .delta file.")],
    size: Annotated[str, typer.Option(
        metavar="HxW", help="A frame's size: shapes, work and memory are for it.")] = "360x640",
    json: JsonFile = None,
) -> None:
    """Show every node with its rule, threshold, shape, share of the work and bytes of state."""
    check_writable(json)
    extent = parse_size(size)
    delta = load(converted)
    frame = example_frame(delta, extent)
    program = delta.program(delta.signature([frame]), [frame])
    data = describe(program) | {"file": str(converted), "frame": list(frame.shape)}
    say(f"{converted}, for frames of {'x'.join(map(str, frame.shape))}\n")
    say(as_text(data))
    write_json(json, data)


def describe(program: Program) -> dict[str, Any]:
    """Return everything about a program as plain data."""
    total = sum(n.dense_multiply_adds for n in program.nodes)
    return {
        "nodes": [_node(node, program, total) for node in program.nodes],
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
        "runs_by": "in place" if about.aliases else node.backend,
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
    for title, chosen in (("unknown operators, run whole and densely", _unknown(data)),
                          ("local operators that run whole", _whole(data)),
                          ("run by the reference backend", _fallbacks(data))):
        if chosen:
            parts += ["", f"{title}:", *chosen]
    settings = ", ".join(f"{name}={value}" for name, value in data["config"].items())
    return "\n".join([*parts, "", f"settings: {settings}"])


def _footer(data: dict[str, Any]) -> str:
    shares = {rule: sum(n["share"] for n in data["nodes"] if n["rule"] == rule)
              for rule in ("local", "global", "unknown")}
    said = ", ".join(f"{share:.2%} {rule}" for rule, share in shares.items())
    return (f"multiply-adds: {data['multiply_adds'] / 1e6:.0f} million a dense frame, {said}\n"
            f"state: {data['state_bytes'] / 1e6:.1f} MB a stream, of which working memory "
            f"{data['scratch_bytes'] / 1e6:.1f} MB")


def _unknown(data: dict[str, Any]) -> list[str]:
    return [f"  {n['node']}: {n['reason']} ({n['source'] or 'line unknown'})"
            for n in data["nodes"] if n["rule"] == "unknown"]


def _whole(data: dict[str, Any]) -> list[str]:
    return [f"  {n['node']}: {n['reason']}" for n in data["nodes"]
            if n["rule"] == "global" and n["reason"]]


def _fallbacks(data: dict[str, Any]) -> list[str]:
    return [f"  {n['node']}: {n['fallback_reason']}" for n in data["nodes"]
            if n["fallback_reason"] and n["runs_by"] != "in place" and n["rule"] != "unknown"]
