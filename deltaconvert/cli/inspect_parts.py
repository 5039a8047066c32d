"""What ``inspect`` says beside the graph: a file's header, and the work of a clip by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from deltaconvert.errors import InputError
from deltaconvert.files import Header
from deltaconvert.module import DeltaModule
from deltaconvert.state import NodeStats
from deltaconvert.words import count, text_table
from deltaconvert.work import Work, ratio

MOST_LISTED = 10
GROWTH = 1.05  # a mask that grows by less is no place to look at


def describe_header(header: Header) -> dict[str, Any]:
    """Return a header as plain data, its graph only counted."""
    model = header.model
    records = [r for r in model.get("graph", ()) if isinstance(r, dict)]
    dtypes = Counter(dtype for dtype, _ in header.tensors.values())
    return {
        "version": header.version, "sha256": header.sha256, "bytes": header.nbytes,
        "tensor_bytes": header.tensor_nbytes, "tensors": len(header.tensors),
        "dtypes": dict(dtypes),
        "inputs": [str(r.get("target")) for r in records if r.get("op") == "input"],
        "operators": dict(Counter(str(r.get("target")) for r in records
                                  if r.get("op") in ("operator", "function", "method"))),
        "config": model.get("config"), "preprocessing": model.get("preprocessing"),
        "traced_for": model.get("traced_for"), "strict": model.get("strict")}


def header_text(data: dict[str, Any]) -> str:
    """Lay out what `describe_header` returned."""
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in data["dtypes"].items())
    operators = ", ".join(f"{number} {name}" for name, number in
                          sorted(data["operators"].items(), key=lambda item: -item[1]))
    frames = data["preprocessing"] and ", ".join(
        f"{name} {value}" for name, value in data["preprocessing"].items() if value is not None)
    lines = [
        ("file", f"{data['file']}, {data['bytes']} bytes, format version {data['version']}"),
        ("sha256", f"{data['sha256']} (as written: checking it needs the weights)"),
        ("tensors", f"{data['tensors']} ({dtypes}), {data['tensor_bytes']} bytes"),
        ("inputs", ", ".join(data["inputs"])), ("operators", operators),
        ("frames", frames or "the file does not say"),
        ("settings", ", ".join(f"{k}={v}" for k, v in (data["config"] or {}).items()))]
    return text_table(lines, align="l")


def measure(delta: DeltaModule, frames: Iterable[Tensor]) -> tuple[Work, int]:
    """Run a stream over frames; return the work of all but the first, and how many there were.

    Raises:
        InputError: fewer than two frames, so that nothing could change.
    """
    stream, work, number = delta.new_stream(), Work(), 0
    for frame in frames:
        stream(frame)
        if number:
            work.add(stream)
        number += 1
    if number < 2:
        raise InputError(f"--source has {count(number, 'frame')}: what changes shows from the "
                         "second frame on.")
    return work, number


def add_work(nodes: list[dict[str, Any]], measured: tuple[Work, int]) -> dict[str, Any]:
    """Put each node's work into its entry; return the totals."""
    work, frames = measured
    for node in nodes:
        stats = work.by_node.get(node["node"], NodeStats())
        node["work"] = {
            "update_ratio_in": stats.update_ratio_in, "update_ratio_out": stats.update_ratio_out,
            "growth": ratio(stats.update_ratio_out, stats.update_ratio_in)
            if stats.total_in else 1.0,
            "needed": ratio(stats.needed, stats.dense) if stats.dense else 0.0,
            "scheduled": ratio(stats.scheduled, stats.dense) if stats.dense else 0.0,
            "amplification": stats.amplification}
    total = work.total()
    return {"frames": frames, "needed": ratio(total.needed, total.dense),
            "scheduled": ratio(total.scheduled, total.dense),
            "amplification": total.amplification}


def work_text(data: dict[str, Any]) -> str:
    """Lay out the work of a clip by node, and where masks grow."""
    rows: list[tuple[str, ...]] = [
        ("node", "changed in", "changed out", "growth", "needed", "computed", "amplification")]
    rows += [_row(node) for node in data["nodes"]]
    grown = sorted((n for n in data["nodes"] if n["work"]["growth"] > GROWTH),
                   key=lambda n: n["work"]["update_ratio_in"] - n["work"]["update_ratio_out"])
    lines = [f"  {n['node']} ({n['operator']}): {n['work']['update_ratio_in']:.1%} to "
             f"{n['work']['update_ratio_out']:.1%}" for n in grown[:MOST_LISTED]]
    more = [f"  and {len(grown) - MOST_LISTED} more"] if len(grown) > MOST_LISTED else []
    return "\n".join([
        f"{data['clip']}, {count(data['frames'], 'frame')}, the first apart; needed, computed: "
        "share of the dense multiply-adds", "", text_table(rows), "",
        f"in all {data['needed']:.1%} needed, {data['scheduled']:.1%} computed, amplification "
        f"{data['amplification']:.2f}", "",
        "where the mask grows most:" if lines else "the mask grows nowhere", *lines, *more])


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    work = node["work"]
    return (node["node"], f"{work['update_ratio_in']:.1%}", f"{work['update_ratio_out']:.1%}",
            f"{work['growth']:.2f}", f"{work['needed']:.1%}", f"{work['scheduled']:.1%}",
            f"{work['amplification']:.2f}")
