"""The tables of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltaconvert.bench import machine
from deltaconvert.bench.layers import SHARES, LayerResult, mean_efficiency
from deltaconvert.bench.networks import CONVERTED
from deltaconvert.words import count, text_table


def network(data: dict[str, Any]) -> str:
    """Lay out what `networks.Result.to_dict` gave."""
    parts = [text_table(runtime_rows(data)), "", text_table(figure_lines(data), align="l"), "",
             text_table(kind_rows(data["kinds"]))]
    if data["skipped"]:
        parts += ["", *(f"left out: {name}: {why}" for name, why in data["skipped"].items())]
    if said := [f"- {remark}" for remark in remarks(data)]:
        parts += ["", *said]
    return "\n".join(parts)


def remarks(data: dict[str, Any]) -> list[str]:
    """Return what to keep in mind beside the figures."""
    said = [*data["check"]["remarks"], machine.warning(data["others_cpu_share"])]
    return [remark for remark in said if remark]


def runtime_rows(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a header, and a row for each runtime."""
    rows: list[tuple[str, ...]] = [("", "precision", "ms", "p5", "p95", "frames/s", "converted is",
                                    "by round", "error", "peak MB")]
    for name, runtime in data["runtimes"].items():
        ms, peak = runtime["ms"], data["peak_memory_bytes"][name]
        mine = name == CONVERTED
        spread = {} if mine else data["speedup_spread"][name]
        rows.append((
            name, runtime["precision"], f"{ms['median']:.2f}", f"{ms['p5']:.2f}",
            f"{ms['p95']:.2f}", f"{runtime['fps']:.1f}",
            "" if mine else f"{data['speedup_over'][name]:.2f}x",
            "" if mine else f"{spread['least']:.2f} to {spread['most']:.2f}",
            f"{data['fidelity_rms'] if mine else runtime['error_rms']:.1e}",
            "-" if peak is None else f"{peak / 1e6:.0f}"))
    return rows


def figure_lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures with their names."""
    lines = [
        ("speed-up", f"{data['speedup_over_best_dense_fp32']:.2f}x over the best dense fp32 "
                     f"({data['best_dense_fp32']}), {data['speedup_over_eager']:.2f}x over eager "
                     "channels_last"),
        ("multiply-adds", f"{data['needed_share']:.1%} of dense needed, "
                          f"{data['scheduled_share']:.1%} computed"),
        ("efficiency", f"{data['efficiency']:.2f}: needed share over share of the best dense time"),
        ("error", f"{data['fidelity_rms']:.2e} in the worst frame, relative RMS; output frozen at "
                  f"frame 0: {data['frozen_rms']:.2e}"),
        ("changed", f"{data['update_ratio_input']:.1%} of the input's pixels, "
                    f"{data['update_ratio_nodes']:.1%} of a node's on average"),
        ("state", f"{data['state_bytes'] / 1e6:.1f} MB; all activations of a dense frame "
                  f"{data['activation_bytes'] / 1e6:.1f} MB"),
        ("equal frame", f"{data['still']['ms']:.2f} ms, {data['still']['over_eager']:.2%} of "
                        "eager"),
    ]
    if data["dense_rounding_rms"] is not None:
        lines.insert(4, ("rounding", f"{data['dense_rounding_rms']:.2e} is what PyTorch's dense "
                         "network is off in this precision"))
    if (over := data["speedup_over_openvino_bf16"]) is not None:
        lines.insert(1, ("in bf16", f"{over:.2f}x over OpenVINO in bf16"))
    if data["unrelated"]:
        lines.append(("unrelated", f"{data['unrelated']['ms']:.2f} ms, "
                      f"{data['unrelated']['over_eager']:.2f} times eager; error "
                      f"{data['unrelated']['error_rms']:.1e}"))
    if search := data["threshold_search"]:
        lines.insert(0, ("thresholds", f"{search['threshold']:g} standard deviations, moved to "
                         f"{thresholds_in_words(search)} by node; found for {search['goal']}"))
    return lines


def thresholds_in_words(search: dict[str, Any]) -> str:
    """Say between what the thresholds lie that a search found."""
    found = [group["threshold"] for group in search["groups"]]
    return f"{min(found, default=0.0):.2g} to {max(found, default=0.0):.2g}"


def kind_rows(kinds: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a header, and where a frame's time goes."""
    rows: list[tuple[str, ...]] = [("a frame's time", "nodes", "ms", "share", "Gflop/s needed")]
    rows += [(k["kind"], str(k["nodes"] or ""), f"{k['ms']:.2f}", f"{k['share']:.1%}",
              f"{k['gigaflops']:.0f}" if k["needed_multiply_adds"] else "") for k in kinds]
    return rows


def layer_head(shares: Sequence[float] = SHARES) -> str:
    """Return the two lines above the table of layers."""
    return (f"{'':<34}{'dense':>8}" + "".join(f"{f'{100 * s:g} % active':>18}" for s in shares)
            + f"\n{'layer':<34}{'ms':>8}" + "ms needed eff.".rjust(18) * len(shares))


def layer_row(result: LayerResult) -> str:
    """Return a layer's line."""
    cells = [f"{p.ms.median:.2f} {p.needed:4.0%} "
             + ("   -" if p.efficiency is None else f"{p.efficiency:4.2f}")
             for p in result.points]
    return f"{result.layer!s:<34}{result.dense_ms.median:>8.2f}" + "".join(
        cell.rjust(18) for cell in cells)


def layer_summary(results: Sequence[LayerResult], shares: Sequence[float] = SHARES) -> str:
    """Return the geometric means of the efficiency, by kind and share."""
    wanted = [s for s in shares if s > 0]
    rows = [("efficiency, geometric mean", "layers", *(f"{100 * s:g} %" for s in wanted),
             "5 to 50 %")]
    for name, chosen in (
            ("dense, 32 channels or more", lambda layer: layer.is_target),
            ("dense, fewer channels", lambda layer: layer.kind == "dense" and not layer.is_target),
            ("grouped", lambda layer: layer.kind == "grouped"),
            ("depthwise", lambda layer: layer.kind == "depthwise")):
        number = sum(chosen(r.layer) for r in results)
        if number:
            means = [mean_efficiency(results, chosen, share) for share in (*wanted, None)]
            rows.append((name, str(number), *("-" if m is None else f"{m:.2f}" for m in means)))
    return text_table(rows) + f"\n{count(len(results), 'layer')}"
