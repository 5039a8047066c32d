"""Pictures of a compiled graph: DOT for Graphviz, and a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from deltaconvert.nodes import DensifyNode
from deltaconvert.pages.page import Drawing, Lines, Section, Table, page
from deltaconvert.program import Program
from deltaconvert.words import count

COLOURS = {"local": "#dbeafe", "global": "#fde8c8", "unknown": "#fbd5d5", "sparsify": "#e2e8f0",
           "densify": "#e2e8f0"}
IN_PLACE = "in place"  # what runs a node that has nothing to compute
MEANINGS = {
    "local": "evaluated where its inputs changed",
    "global": "run whole when an input changed", "unknown": "run whole, as the original function",
    "sparsify": "the door in", "densify": "the door out"}
ROW_PX, BOX_PX, LANE_PX = 40, 640, 12


@dataclass(frozen=True)
class Box:
    """A node of the picture.

    Args:
        name, rule: of the node.
        lines: what it says, the most important first.
        inputs: names of the nodes that it reads.
    """

    name: str
    rule: str
    lines: tuple[str, str]
    inputs: tuple[str, ...]


def boxes(program: Program, nodes: Sequence[Mapping[str, Any]]) -> list[Box]:
    """Return the nodes in order of execution, the doors out last.

    Args:
        program: what was compiled.
        nodes: what ``inspect`` says of each.
    """
    told = {node["node"]: node for node in nodes}
    made = [Box(n.about.name, n.about.rule, _lines(told[n.about.name]),
                tuple(spec.name for spec in n.about.inputs)) for n in program.nodes]
    doors = [m for _, m in program.graph_module.named_modules() if isinstance(m, DensifyNode)]
    return made + [Box(d.about.name, "densify", ("densify", "a copy of the value"),
                       tuple(spec.name for spec in d.about.inputs)) for d in doors]


def _lines(node: Mapping[str, Any]) -> tuple[str, str]:
    shape = "-" if node["shape"] is None else "x".join(map(str, node["shape"]))
    second = [shape, f"{node['multiply_adds'] / 1e6:.1f} M multiply-adds",
              f"state {node['state_bytes'] / 1e3:.0f} kB",
              node["runs_by"] if node["runs_by"] == IN_PLACE else f"by {node['runs_by']}"]
    if node["threshold"]:
        second.append(f"threshold {node['threshold']:g}")
    if "work" in node:
        second.append(f"changed {node['work']['update_ratio_out']:.0%}")
    second += [node[why] for why in ("reason", "fallback_reason") if node[why]]
    return f"{node['node']}: {node['operator']}", ", ".join(second)


def as_dot(program: Program, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Return the graph in Graphviz's language; see `boxes` for the arguments."""
    lines = ["digraph deltaconvert {", '  node [shape=box, style="filled,rounded", '
             'fontname="sans-serif", fontsize=10];']
    for box in boxes(program, nodes):
        label = "\\n".join(_dot_text(line) for line in box.lines)
        lines.append(f'  "{_dot_text(box.name)}" [label="{label}", '
                     f'fillcolor="{COLOURS[box.rule]}"];')
        lines += [f'  "{_dot_text(source)}" -> "{_dot_text(box.name)}";' for source in box.inputs]
    return "\n".join([*lines, "}", ""])


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def graph_page(program: Program, data: Mapping[str, Any], text: str) -> str:
    """Return the graph as a page.

    Args:
        program: what was compiled.
        data: what ``inspect`` says, as plain data.
        text: the same as it is printed.
    """
    drawn = boxes(program, data["nodes"])
    legend = [("colour", "nodes", "meaning")]
    legend += [(rule, str(sum(b.rule == rule for b in drawn)), meaning)
               for rule, meaning in MEANINGS.items() if any(b.rule == rule for b in drawn)]
    passes = [f"{r.name}\n" + "\n".join(f"  {line}" for line in r.changed)
              for r in program.results if r.changed]
    sections = [
        Section("Graph", [Table(legend), Drawing(as_svg(drawn))]),
        Section("Table", [Lines(text)]),
        Section("What the passes changed", [Lines(told) for told in passes]),
    ]
    subtitle = (f"{data['file']}, for frames of {'x'.join(map(str, data['frame']))}: "
                f"{count(len(program.nodes), 'node')}, {data['multiply_adds'] / 1e6:.0f} million "
                f"multiply-adds, {data['state_bytes'] / 1e6:.1f} MB of state")
    return page("deltaconvert inspect", subtitle, sections)


def as_svg(drawn: Sequence[Box]) -> str:
    """Draw boxes in order of execution, one a row; edges that skip rows run at the left."""
    rows = {box.name: row for row, box in enumerate(drawn)}
    edges = [(rows[source], rows[box.name]) for box in drawn for source in box.inputs
             if source in rows]
    lanes = assign_lanes([e for e in edges if e[1] - e[0] > 1])
    left = LANE_PX * (max(lanes.values(), default=-1) + 2)
    width, height = left + BOX_PX + 4, ROW_PX * len(drawn)
    parts = [_edge(edge, lanes.get(edge), left) for edge in edges]
    parts += [_box(box, row, left) for row, box in enumerate(drawn)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif">{"".join(parts)}</svg>')


def assign_lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Give each edge a vertical lane in which no other runs beside it; the shortest are inmost."""
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[tuple[int, int], int] = {}
    for edge in sorted(set(edges), key=lambda e: (e[1] - e[0], e)):
        free = (i for i, lane in enumerate(taken)
                if all(edge[1] <= first or edge[0] >= last for first, last in lane))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append(edge)
        lanes[edge] = lane
    return lanes


def _edge(edge: tuple[int, int], lane: int | None, left: int) -> str:
    top, bottom = ROW_PX * edge[0] + ROW_PX - 8, ROW_PX * edge[1] + 4
    if lane is None:
        x = left + 24
        return f'<path d="M{x} {top}V{bottom}" stroke="#64748b" fill="none"/>'
    x = left - LANE_PX * (lane + 1)
    return (f'<path d="M{left} {top - 6}H{x + 4}Q{x} {top - 6} {x} {top - 2}V{bottom + 2}'
            f'Q{x} {bottom + 6} {x + 4} {bottom + 6}H{left}" stroke="#94a3b8" fill="none"/>')


def _box(box: Box, row: int, left: int) -> str:
    y = ROW_PX * row + 4
    first, second = (escape(line if len(line) < 96 else line[:95] + "…") for line in box.lines)
    return (f'<g><title>{escape(f"{box.lines[0]} ({box.rule}): {box.lines[1]}")}</title>'
            f'<rect x="{left}" y="{y}" width="{BOX_PX}" height="{ROW_PX - 12}" rx="4" '
            f'fill="{COLOURS[box.rule]}" stroke="#94a3b8"/>'
            f'<text x="{left + 6}" y="{y + 12}" font-size="12" fill="#111">{first}</text>'
            f'<text x="{left + 6}" y="{y + 24}" font-size="10" fill="#444">{second}</text></g>')
