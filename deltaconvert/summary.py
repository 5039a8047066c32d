"""A converted model in words: the table of its nodes, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltaconvert.fallbacks import fallbacks
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import NodeStats
from deltaconvert.words import text_table

if TYPE_CHECKING:
    from deltaconvert.islands import IslandsProgram
    from deltaconvert.module import DeltaModule
    from deltaconvert.program import Program
    from deltaconvert.stream import Stream

MOSTLY_WHOLE = 0.9  # share of the multiply-adds outside local nodes


def summarize(module: DeltaModule, stream: Stream | None = None) -> str:
    """Describe the program of a stream (the module's own), with its last frame's work."""
    stream = stream or module.stream
    program = stream.program or module.newest_program
    if program is None:
        operators = sum(n.op.startswith("call") for n in module.graph.nodes)
        return (f"{operators} canonical operators; rules, shapes and state are known after the "
                "first frame (or give convert its example_inputs).")
    last = stream.last
    rows: list[tuple[str, ...]] = [("node", "operator", "rule", "runs by", "threshold", "output",
                                    "in", "out")]
    rows += [_row(node, last.get(node.about.name, NodeStats())) for node in program.nodes]
    return "\n".join([text_table(rows, align="l"), "", *_footer(program, last)])


def operator_name(node: DeltaNode) -> str:
    """Return what a node computes, with what is fused into it."""
    about = node.about
    if about.rule == "sparsify":
        return "sparsify"
    activation = about.params.get("activation")
    residual = " + residual" if about.operator and "residual" in about.operator.fuses and len(
        about.inputs) > 1 else ""
    return about.function_name + residual + (f" + {activation[0]}" if activation else "")


def _row(node: DeltaNode, work: NodeStats) -> tuple[str, ...]:
    about = node.about
    shape = "x".join(map(str, about.output.shape)) if about.output.shape is not None else "-"
    runs_by = "in place" if about.aliases else node.backend
    return (about.name, operator_name(node), about.rule, runs_by, f"{about.threshold:g}", shape,
            f"{work.update_ratio_in:.1%}", f"{work.update_ratio_out:.1%}")


def _footer(program: Program, last: dict[str, NodeStats]) -> list[str]:
    total = NodeStats()
    for work in last.values():
        total.add(work)
    shares = multiply_add_shares(program.nodes)
    lines = [f"state: {program.plan.nbytes / 1e6:.1f} MB for {program.lanes} lanes "
             f"(values {program.plan.value_bytes / 1e6:.1f} MB)",
             "multiply-adds: " + ", ".join(f"{share:.2%} {rule}" for rule, share in shares.items())]
    if speed_in_words(program.nodes):
        lines.append(f"speed: {speed_in_words(program.nodes)}")
    if total.dense:
        lines.append(f"last frame: {total.needed / total.dense:.1%} of the dense multiply-adds "
                     f"needed, {total.scheduled / total.dense:.1%} computed")
    lines += [f"{f.rule}: {f}" for f in fallbacks(program.nodes) if f.rule == "unknown"]
    return lines


def speed_in_words(nodes: list[DeltaNode]) -> str:
    """Say so where conversion saves next to nothing in a frame that changed; else nothing."""
    shares = multiply_add_shares(nodes)
    whole = shares["global"] + shares["unknown"]
    if whole < MOSTLY_WHOLE:
        return ""
    return (f"{whole:.0%} of the multiply-adds run whole when anything changes, and such a frame "
            "takes about what it takes the dense model; one equal to the last, next to nothing")


def multiply_add_shares(nodes: list[DeltaNode]) -> dict[str, float]:
    """Return the share of the dense multiply-adds in local, global and unknown nodes."""
    sums = {"local": 0, "global": 0, "unknown": 0}
    for node in nodes:
        if node.about.rule in sums:
            sums[node.about.rule] += node.dense_multiply_adds
    total = sum(sums.values()) or 1
    return {rule: amount / total for rule, amount in sums.items()}


def settings_in_words(program: Program | IslandsProgram) -> str:
    """Say which thresholds and backends a program has."""
    config = program.config
    thresholds = sorted({n.about.threshold for n in program.nodes if n.about.rule != "sparsify"
                         and n.about.threshold > 0})
    unit = " std" if config.threshold_unit == "std" else ""
    said = "exact" if not thresholds else (
        f"thresholds {thresholds[0]:g}" + (f" to {thresholds[-1]:g}" if thresholds[1:] else "")
        + f"{unit} ({config.norm})")
    if config.input_threshold:
        said += f", input {config.input_threshold:g} ({config.input_test} test)"
    runs: dict[str, int] = {}
    for node in program.nodes:
        by = "in place" if node.about.aliases else node.backend
        runs[by] = runs.get(by, 0) + 1
    return said + "; nodes run by " + ", ".join(
        f"{name} {number}" for name, number in sorted(runs.items(), key=lambda r: -r[1]))
