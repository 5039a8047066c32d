"""Convert every model of the coverage table, validate each, and write docs/coverage.md.

    python -m benchmarks.coverage_table                    all, two at a time: under an hour
    python -m benchmarks.coverage_table --only 'timm:re*'  some; the others' results are kept
    python -m benchmarks.coverage_table --table            the table alone, from the last results

Each model runs at threshold 0 over five frames of a clip in which textured objects move over
a static background. It agrees where no frame's relative RMS error exceeds 1e-5 in float32.

Exits with 1 where a measured row does not agree, or has more than 3 % of its multiply-adds
outside local nodes without being an exception (`EXCEPTIONS`), which the table lists.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import deltaconvert
from benchmarks.coverage_cases import FRAMES, Case, cases, order
from deltaconvert.checking.law import as_inputs
from deltaconvert.errors import TraceError
from deltaconvert.nodes import DeltaNode
from deltaconvert.outputs import named_outputs
from deltaconvert.validate import OWN_ROUNDINGS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "build" / "coverage"
TABLE = ROOT / "docs" / "coverage.md"
NOT_RUN = "not measured yet"
TOLERANCE = 1e-5  # relative RMS of a frame, float32
SAME_IN_FLOAT64 = 1e-9  # relative RMS; 1e-5 is for a precision 5e8 times as coarse
MOST_BEYOND = 0.03  # share of the multiply-adds outside local nodes

CLASSIFIER, ATTENTION, VOLUMES = "classifier", "attention", "volumes"
BATCHES, OUTSIDE = "batches", "outside"
EXCEPTIONS = {
    CLASSIFIER: "a matrix behind the global pooling: one pixel, which every change reaches",
    ATTENTION: "each place is weighed against the others: tokens, windows, what is made of them",
    BATCHES: "maps of another batch size than the frame's: RAFT encodes both pictures as one "
             "batch. As islands (modules=) its encoders are local",
    VOLUMES: "convolutions over time as well as space: a call has a whole clip in it, which is "
             "computed when anything in it changes, at the speed of the dense model; it gains "
             "where a clip is equal to the last",
    OUTSIDE: "the model's own code between the islands: heads that run on boxes",
}

Delta = deltaconvert.DeltaModule | deltaconvert.IslandsModule
Outputs = list[list[tuple[str, Tensor]]]


def measure(case: Case) -> dict[str, Any]:
    """Return one row: what happened, as plain data."""
    wall, cpu = time.perf_counter(), time.process_time()
    row: dict[str, Any] = {"name": case.name, "kind": case.kind, "size": list(case.size),
                           "converts": "", "agrees": "", "error": None}
    try:
        fill(row, case)
    except Exception as error:  # a row of the table, whatever it is
        row |= {"error": None, "agrees": f"{type(error).__name__}: {str(error).strip()[:300]}",
                "traceback": traceback.format_exc()}
    return row | {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def fill(row: dict[str, Any], case: Case) -> None:
    """Put what is found into a row as it is found.

    The largest models are gigabytes of weights. So there is one conversion at a time, and the
    model itself becomes the network in float64.
    """
    model, frames = case.build(), case.frames()
    delta, row["converts"] = convert(model, case, frames)
    row |= compare(model, delta, frames) | shares(model, delta, frames[0])
    if row["agrees"] != "no":
        return
    computed = [outputs(model, frames), outputs(delta.new_stream(), frames)]
    del delta
    gc.collect()  # graphs are full of references to each other
    raised = [tuple(f.double() for f in as_inputs(frame)) for frame in frames]
    wanted = outputs(model.double(), raised)
    delta, _ = convert(model, case, raised)
    del model
    row |= rounding(computed, wanted, outputs(delta, raised), case)


def convert(model: nn.Module, case: Case, frames: list[Any]) -> tuple[Delta, str]:
    """Convert a model whole, or else in part; say which."""
    if case.modules is None:
        for given in ((), as_inputs(frames[0])):
            try:
                delta = deltaconvert.convert(model, given)
            except TraceError:
                continue
            return delta, "whole, size by size" if delta.traced.traced_for else "whole"
    delta = deltaconvert.convert(model, modules="auto")
    assert isinstance(delta, deltaconvert.IslandsModule)
    return delta, f"islands: {', '.join(_without_numbers(delta.islands))}"


def _without_numbers(paths: Any) -> list[str]:
    """Name a list of submodules once: ``head.0``, ``head.1`` are ``head.*``."""
    named = [".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths]
    return list(dict.fromkeys(named))


def compare(model: nn.Module, delta: Delta, frames: list[Any]) -> dict[str, Any]:
    """Validate."""
    report = deltaconvert.validate(model, delta, frames, tolerance=TOLERANCE)
    found = {"error": max(o.worst_relative_rms for o in report.outputs),
             "frozen": max(o.frozen_relative_rms for o in report.outputs),
             "needed": report.needed, "state_bytes": report.state_bytes,
             "agrees": "yes" if report.passed else "no"}
    if report.breaches:
        return found | {"agrees": f"the law is broken: {str(report.breaches[0]).splitlines()[0]}"}
    return found


def rounding(computed: list[Outputs], wanted: Outputs, converted: Outputs, case: Case
             ) -> dict[str, Any]:
    """Say whether float32 alone is why a conversion does not agree.

    Two things must hold: converted in float64, next to nothing is left of the error; and in
    float32 the conversion is no more than a few times as far off float64 as the dense network
    itself. The latter is not asked of a detector: it sorts, and two untrained boxes of nearly
    one score change places.

    Args:
        computed: what dense and converted return in float32.
        wanted: what dense returns in float64.
        converted: what converted returns in float64.
        case: of which.
    """
    error = furthest(converted, wanted)
    found: dict[str, Any] = {"error_in_float64": error}
    told, right = f"{error:.0e} in float64", error <= SAME_IN_FLOAT64
    if case.kind != "detection":
        dense, own = (furthest(values, wanted) for values in computed)
        found |= {"dense_off_float64": dense, "off_float64": own}
        told = f"off float64 by {own:.0e}, dense by {dense:.0e}; {told}"
        right = right and own <= OWN_ROUNDINGS * dense
    return found | {"agrees": f"{'rounding' if right else 'no'}: {told}"}


@torch.no_grad()
def outputs(model: Any, frames: list[Any]) -> Outputs:
    """Return what a model returns for each frame: its tensors, by name."""
    return [named_outputs(model(*as_inputs(frame))) for frame in frames]


def furthest(found: Outputs, wanted: Outputs) -> float:
    """Return the largest relative RMS error of any output in any frame, labels apart.

    Endless where a frame has another number of boxes.
    """
    return max((_relative_rms(value, right)
               for one, other in zip(found, wanted, strict=True)
               for (_, value), (_, right) in zip(one, other, strict=True)
               if right.is_floating_point()), default=0.0)


def _relative_rms(value: Tensor, right: Tensor) -> float:
    if value.shape != right.shape:
        return math.inf
    error, size = float((value - right).norm()), float(right.norm())
    return error / size if size else error


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
            "beyond": beyond(stream.program.nodes, sums["outside"], total),
            **{rule: sums[rule] / total for rule in ("local", "global", "unknown", "outside")}}


def beyond(nodes: list[DeltaNode], outside: int, total: int) -> dict[str, float]:
    """Return the shares outside local nodes by what they are: an exception, or a reason."""
    sums = Counter({OUTSIDE: outside})
    for node in nodes:
        if node.about.rule in ("global", "unknown"):
            sums[_what(node)] += node.dense_multiply_adds * node.about.output.lanes
    return {what: amount / total for what, amount in sums.most_common() if amount}


def _what(node: DeltaNode) -> str:
    about = node.about
    name = about.operator.name if about.operator else ""
    ranks = {len(edge.shape) for edge in about.inputs if edge.shape is not None}
    if name == "linear" and ranks == {2}:
        return CLASSIFIER
    if name in ("linear", "matmul", "einsum") or "attention" in name + about.reason:
        return ATTENTION
    if about.output.shape is not None and len(about.output.shape) == 4 and not about.output.is_map:
        return BATCHES
    return VOLUMES if "conv3d" in about.reason.lower() else about.reason or name


def too_much(row: dict[str, Any]) -> dict[str, float]:
    """Return what is outside local nodes and no exception, where that is over 3 %."""
    rest = {what: s for what, s in row.get("beyond", {}).items() if what not in EXCEPTIONS}
    return rest if sum(rest.values()) > MOST_BEYOND else {}


# --- running ----------------------------------------------------------------------------


def _run(case: Case) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = measure(case)
    RESULTS.mkdir(parents=True, exist_ok=True)
    _file(case).write_text(json.dumps(row, indent=1))
    gc.collect()  # streams and graphs are full of references to each other
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
    """Run cases in processes of their own; print a line for each as it is done, and the costs."""
    start, context = time.perf_counter(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=12) as pool:
        waiting = [pool.submit(_run, case) for case in sorted(chosen, key=order)]
        try:
            for row in (future.result() for future in as_completed(waiting)):
                error = "" if row["error"] is None else f" {row['error']:.1e}"
                print(f"{row['name']:55} {row['seconds']:6.1f} s, CPU {row['cpu_seconds']:6.1f} s"
                      f"  {row['converts']}; {row['agrees']}{error}", flush=True)
        except BrokenProcessPool:
            sys.exit("a process was killed, most likely for want of memory. Results so far are "
                     "kept: run the rest with --missing --jobs 1")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(chosen)} rows took {used.ru_utime + used.ru_stime:.0f} s of CPU time, imports "
          f"included, in {time.perf_counter() - start:.0f} s by {jobs} processes; the largest held "
          f"{used.ru_maxrss / 1e6:.1f} GB")


# --- the table --------------------------------------------------------------------------

HEAD = """# Coverage

What converts, and whether it computes what the dense model does. Written by `make coverage`;
not by hand.

Every model of torchvision (its quantised ones apart, which are integers for another engine),
one model of each of {timm} families of timm, and {own} networks of kinds that no model zoo has
([`families.py`](../tests/families.py)). Weights are random and seeded,
with BatchNorm statistics from the clip. Each runs at threshold 0 over {frames} frames in which
textured objects move over a static background.

- **converts**: *whole*; *whole, size by size*, where the model's code branches on shapes; or the
  *islands* that are converted in a model whose own code stays between them.
- **agrees**: no frame's relative RMS error exceeds 1e-5 in float32, and every node keeps the law.
  *rounding*: it does, but for float32's own rounding, which random weights amplify from layer to
  layer: in the worst frame it is no more than four times as far off the network in float64 as the
  dense network is itself (the row says both), and converted in float64, next to nothing is left
  of the error. Of detectors only the latter is asked: they sort, and two untrained boxes of
  nearly one score change places.
- **local**, **global**, **unknown**, **outside**: shares of the dense multiply-adds: of nodes that
  compute what changed alone; of nodes that run whole when something changed (attention,
  classifiers: at these small sizes a classifier weighs more than in use); of operators that
  deltaconvert does not know, which run whole; and outside of all islands.
- **needed**: multiply-adds of the pixels that had to be computed, over dense, first frame apart.
- **state**: values, masks and working memory of one stream.

PyTorch {torch}, torchvision {torchvision}, timm {timm_version}; {rows} models, {measured}
measured, {agree} agree: {within} within 1e-5, {rounding} but for rounding. The rows take
{minutes:.0f} minutes of one core's time together, the longest {longest} ({seconds:.0f} s).
"""

BEYOND = """## Beyond 3 %

Models with more than 3 % of their multiply-adds outside local nodes, and what these are. Only
the following are excepted from the bound:

{exceptions}

{verdict}

| model | what runs whole |
|---|---|
{lines}
"""

COLUMNS = ("model", "frame", "converts", "agrees", "local", "global", "unknown", "outside",
           "needed", "state, MB")
KINDS = ("classification", "segmentation", "detection", "video", "optical flow", "timm", "other")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the document."""
    import timm
    import torchvision

    kinds = Counter(row["kind"] for row in rows)
    within, rounded = (sum(row["agrees"].startswith(word) for row in rows)
                       for word in ("yes", "rounding"))
    longest = max(rows, key=_cpu)
    parts = [HEAD.format(minutes=sum(map(_cpu, rows)) / 60, seconds=_cpu(longest),
                         longest=longest["name"].partition(":")[2],
                         timm=kinds["timm"], own=kinds["other"], frames=FRAMES, rows=len(rows),
                         measured=sum(row["agrees"] != NOT_RUN for row in rows),
                         agree=within + rounded, within=within, rounding=rounded,
                         torch=_release(torch), torchvision=_release(torchvision),
                         timm_version=_release(timm))]
    for kind in KINDS:
        lines = [_line(row) for row in rows if row["kind"] == kind]
        if lines:
            head = [" | ".join(("", *COLUMNS, "")).strip(), "|---|---|---|---|" + "--:|" * 6]
            parts.append("\n".join([f"## {kind.capitalize()}", "", *head, *lines, ""]))
    return "\n".join([*parts, _beyond(rows), _reasons(rows)])


def _beyond(rows: list[dict[str, Any]]) -> str:
    """List the rows over the bound, with what is over it."""
    lines, over = [], []
    for row in rows:
        shares = {what: share for what, share in row.get("beyond", {}).items() if share >= 0.001}
        if sum(shares.values()) > MOST_BEYOND:
            name = row["name"].partition(":")[2]
            said = ", ".join(f"{_cell(what)} {share:.1%}" for what, share in shares.items())
            lines.append(f"| {name} | {said} |")
            over += [name] if too_much(row) else []
    verdict = f"Over it without an exception: {', '.join(over)}." if over else (
        "Nothing else exceeds 3 % in any model.")
    exceptions = "\n".join(f"- **{what}**: {why}." for what, why in EXCEPTIONS.items())
    return BEYOND.format(exceptions=exceptions, verdict=verdict, lines="\n".join(lines))


def _cpu(row: dict[str, Any]) -> float:
    return float(row.get("cpu_seconds", 0.0))


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
    rows = [_result(case) for case in cases()]
    TABLE.write_text(table(rows))
    print(f"wrote {TABLE.relative_to(ROOT)}")
    sys.exit(report_failures(rows))


def report_failures(rows: list[dict[str, Any]]) -> int:
    """Print what a measured row fails in; return the exit code."""
    measured = [row for row in rows if row["agrees"] != NOT_RUN]
    failures = [f"{row['name']}: {row['agrees']}" for row in measured
                if not row["agrees"].startswith(("yes", "rounding"))]
    failures += [f"{row['name']}: {rest} outside local nodes" for row in measured
                 if (rest := too_much(row))]
    print("\n".join(failures) or f"all {len(measured)} measured rows are right")
    return 1 if failures else 0


if __name__ == "__main__":
    main()
