"""Convert every model of the coverage table, validate each, and write docs/coverage.md.

    python -m benchmarks.coverage_table                    all, two at a time: under an hour
    python -m benchmarks.coverage_table --only 'timm:re*'  some; the others' results are kept
    python -m benchmarks.coverage_table --table            the table alone, from the last results

Each model runs at threshold 0 over five frames of a clip in which textured objects move over
a static background. It agrees where no frame's relative RMS error exceeds 1e-5 in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
import traceback
import warnings
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import deltaconvert
from benchmarks.coverage_cases import FRAMES, Case, cases
from deltaconvert.errors import TraceError
from deltaconvert.law import as_inputs
from deltaconvert.validate import OWN_ROUNDINGS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "build" / "coverage"
TABLE = ROOT / "docs" / "coverage.md"
NOT_RUN = "not measured yet"
TOLERANCE = 1e-5  # relative RMS of a frame, float32

Delta = deltaconvert.DeltaModule | deltaconvert.IslandsModule


def measure(case: Case) -> dict[str, Any]:
    """Return one row: what happened, as plain data."""
    start = time.perf_counter()
    row: dict[str, Any] = {"name": case.name, "kind": case.kind, "size": list(case.size),
                           "converts": "", "agrees": "", "error": None}
    try:
        model, frames = case.build(), case.frames()
        delta, row["converts"] = convert(model, case, frames)
        row |= compare(model, delta, frames, case) | shares(model, delta, frames[0])
    except Exception as error:  # a row of the table, whatever it is
        row["agrees"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        row["traceback"] = traceback.format_exc()
    return row | {"seconds": time.perf_counter() - start}


def convert(model: nn.Module, case: Case, frames: list[Any]) -> tuple[Delta, str]:
    """Convert a model whole, else for this size, else in part; say which."""
    if case.modules is None:
        try:
            return deltaconvert.convert(model), "whole"
        except TraceError:
            pass
        try:
            return deltaconvert.convert(model, as_inputs(frames[0])), "whole, for one size"
        except TraceError:
            pass
    delta = deltaconvert.convert(model, modules="auto")
    assert isinstance(delta, deltaconvert.IslandsModule)
    return delta, f"islands: {', '.join(_without_numbers(delta.islands))}"


def _without_numbers(paths: Any) -> list[str]:
    """Name a list of submodules once: ``head.0``, ``head.1`` are ``head.*``."""
    named = [".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths]
    return list(dict.fromkeys(named))


def compare(model: nn.Module, delta: Delta, frames: list[Any], case: Case) -> dict[str, Any]:
    """Validate; where float32 does not agree, find out whether that is its own rounding."""
    report = deltaconvert.validate(model, delta, frames, tolerance=TOLERANCE)
    found = {"error": max(o.worst_relative_rms for o in report.outputs),
             "frozen": max(o.frozen_relative_rms for o in report.outputs),
             "needed": report.needed, "state_bytes": report.state_bytes,
             "agrees": "yes" if report.passed else "no"}
    if report.breaches:
        return found | {"agrees": f"the law is broken: {str(report.breaches[0]).splitlines()[0]}"}
    if not report.passed:
        found["agrees"] = rounding(model, delta, frames, case)
    return found


def rounding(model: nn.Module, delta: Delta, frames: list[Any], case: Case) -> str:
    """Say whether float32 alone is why a conversion does not agree.

    A detector sorts: two boxes of nearly one score change places, so it is converted in
    float64. Else the dense network's own distance from float64 is what to expect.
    """
    if case.kind == "detection":
        error = in_float64(model, frames, case)
        return f"{'rounding' if error <= 1e-9 else 'no'}: {error:.0e} in float64"
    report = deltaconvert.validate(model, delta, frames)
    allowed = max(o.tolerance or 0.0 for o in report.outputs) / OWN_ROUNDINGS
    return f"{'rounding' if report.passed else 'no'}: dense itself is {allowed:.0e} off float64"


def in_float64(model: nn.Module, frames: list[Any], case: Case) -> float:
    """Return the error of a conversion in double precision, where rounding decides nothing."""
    model = copy.deepcopy(model).double()
    raised = [tuple(f.double() for f in as_inputs(frame)) for frame in frames]
    delta, _ = convert(model, case, raised)
    report = deltaconvert.validate(model, delta, raised, tolerance=TOLERANCE)
    return max(o.worst_relative_rms for o in report.outputs)


def shares(model: nn.Module, delta: Delta, frame: Any) -> dict[str, Any]:
    """Return the multiply-adds of a frame by what computes them; ``outside`` is no island."""
    inputs = as_inputs(frame)
    stream = delta.new_stream()
    stream(*inputs)
    assert stream.program is not None
    sums: Counter[str] = Counter()
    for node in stream.program.nodes:
        if node.about.rule in ("local", "global", "unknown"):
            sums[node.about.rule] += node.dense_multiply_adds * node.about.output.lanes
    sums["outside"] = 0
    if isinstance(delta, deltaconvert.IslandsModule):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
        sums["outside"] = max(0, counter.get_total_flops() // 2 - sum(sums.values()))
    total = sum(sums.values()) or 1
    reasons = Counter(n.about.reason for n in stream.program.nodes if n.about.rule == "unknown")
    return {"multiply_adds": total, "unknown_reasons": dict(reasons),
            **{rule: sums[rule] / total for rule in ("local", "global", "unknown", "outside")}}


# --- running ----------------------------------------------------------------------------


def _run(case: Case) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = measure(case)
    RESULTS.mkdir(parents=True, exist_ok=True)
    _file(case).write_text(json.dumps(row, indent=1))
    return row


def _file(case: Case) -> Path:
    return RESULTS / f"{case.name.replace(':', '-')}.json"


def _result(case: Case) -> dict[str, Any]:
    """Return a case's last result, or say that there is none."""
    if _file(case).exists():
        row: dict[str, Any] = json.loads(_file(case).read_text())
        return row
    return {"name": case.name, "kind": case.kind, "size": list(case.size), "error": None,
            "converts": "?", "agrees": NOT_RUN}


def run(chosen: list[Case], jobs: int) -> None:
    """Run cases in processes of their own, and print a line for each as it is done."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=12) as pool:
        for row in pool.imap_unordered(_run, chosen):
            error = "" if row["error"] is None else f" {row['error']:.1e}"
            print(f"{row['name']:55} {row['seconds']:6.1f} s  {row['converts']}; "
                  f"{row['agrees']}{error}", flush=True)


# --- the table --------------------------------------------------------------------------

HEAD = """# Coverage

What converts, and whether it computes what the dense model does. Written by `make coverage`;
not by hand.

Every model of torchvision (its quantised ones apart, which are integers for another engine),
one model of each of {timm} families of timm, and {own} networks of kinds that no model zoo has
([`families.py`](../tests/families.py)). Weights are random and seeded,
with BatchNorm statistics from the clip. Each runs at threshold 0 over {frames} frames in which
textured objects move over a static background.

- **converts**: *whole*; *whole, for one size*, where the model's code branches on shapes; or the
  *islands* that are converted in a model whose own code stays between them.
- **agrees**: no frame's relative RMS error exceeds 1e-5 in float32, and every node keeps the law.
  *rounding*: it does, but for float32's own rounding: the error is no more than four times what
  the dense network itself is off its computation in float64 (random weights amplify it from
  layer to layer), or, of detectors, whose sorting lets two untrained boxes change places,
  nothing is left of it in float64.
- **local**, **global**, **unknown**, **outside**: shares of the dense multiply-adds: of nodes that
  compute what changed alone; of nodes that run whole when something changed (attention,
  classifiers: at these small sizes a classifier weighs more than in use); of operators that
  deltaconvert does not know, which run whole; and outside of all islands.
- **needed**: multiply-adds of the pixels that had to be computed, over dense, first frame apart.
- **state**: values, masks and working memory of one stream.

PyTorch {torch}, torchvision {torchvision}, timm {timm_version}; {rows} models, {measured}
measured, {agree} agree.
"""

COLUMNS = ("model", "frame", "converts", "agrees", "local", "global", "unknown", "outside",
           "needed", "state, MB")
KINDS = ("classification", "segmentation", "detection", "video", "optical flow", "timm", "other")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the document."""
    import timm
    import torchvision

    kinds = Counter(row["kind"] for row in rows)
    agree = sum(row["agrees"].startswith(("yes", "rounding")) for row in rows)
    parts = [HEAD.format(timm=kinds["timm"], own=kinds["other"], frames=FRAMES, rows=len(rows),
                         measured=sum(row["agrees"] != NOT_RUN for row in rows),
                         agree=agree, torch=_release(torch), torchvision=_release(torchvision),
                         timm_version=_release(timm))]
    for kind in KINDS:
        lines = [_line(row) for row in rows if row["kind"] == kind]
        if lines:
            head = [" | ".join(("", *COLUMNS, "")).strip(), "|---|---|---|---|" + "--:|" * 6]
            parts.append("\n".join([f"## {kind.capitalize()}", "", *head, *lines, ""]))
    return "\n".join([*parts, _reasons(rows)])


def _release(package: Any) -> str:
    return str(package.__version__).partition("+")[0]


def _line(row: dict[str, Any]) -> str:
    name = row["name"].partition(":")[2]
    size = "x".join(map(str, row["size"]))
    if row["error"] is None:
        said = row["converts"] or "no"
        return f"| {name} | {size} | {said} | {_cell(row['agrees'])} " + "|  " * 6 + "|"
    numbers = [f"{row[key]:.1%}" for key in ("local", "global", "unknown", "outside", "needed")]
    agrees = f"{_cell(row['agrees'])}, {row['error']:.0e}"
    return (f"| {name} | {size} | {row['converts']} | {agrees} | "
            + " | ".join(numbers) + f" | {row['state_bytes'] / 1e6:.1f} |")


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def _reasons(rows: list[dict[str, Any]]) -> str:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.get("unknown_reasons", {}).keys())
    lines = [f"| {_cell(reason)} | {number} |" for reason, number in counts.most_common()]
    return "\n".join(["## Operators that run as unknown", "", "| why | in models |", "|---|--:|",
                      *lines, ""])


def main() -> None:
    """Run what is asked for and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="write the table alone")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    options = parser.parse_args()
    chosen = [c for c in cases() if fnmatchcase(c.name, options.only)
              and not (options.missing and _file(c).exists())]
    if not options.table:
        run(chosen, options.jobs)
    TABLE.write_text(table([_result(case) for case in cases()]))
    print(f"wrote {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
