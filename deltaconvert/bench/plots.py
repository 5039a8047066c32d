"""The pictures: speed-up against active share, and where the milliseconds of a frame go."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deltaconvert.bench.layers import LayerResult

BEST = "best dense fp32"
COLORS = {BEST: "#000000", "eager": "#888888", "torch.compile": "#2a7f62",
          "onnxruntime": "#1f6fb2", "openvino": "#c0392b", "openvino-bf16": "#e08e0b"}
# What is smaller than this of the widest bar is drawn as one with the other small ones.
SMALL_SHARE = 0.02


def speedup(runs: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """Draw the speed-up over each runtime against the active share, a panel a model.

    Args:
        runs: by model, what `networks.Result.to_dict` gave, with ``active_share`` beside it.
    """
    figure, panels = _panels(len(runs))
    for axes, (model, points) in zip(panels, runs.items(), strict=True):
        _speedup(axes, sorted(points, key=lambda run: run["active_share"]))
        axes.set_title(model, fontsize=10)
    panels[0].set_ylabel("times faster")
    return figure


def _speedup(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    active = [100 * run["active_share"] for run in points]
    for name in points[0]["speedup_over"]:
        axes.plot(active, [run["speedup_over"][name] for run in points], "o-", markersize=3,
                  linewidth=1.2, color=COLORS.get(name), label=f"over {name}")
    axes.plot(active, [1 / run["needed_share"] if run["needed_share"] else math.nan
                       for run in points], ":", color="#555555", linewidth=1,
              label="1 / needed share")
    axes.axhline(1, color="#cccccc", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(active, [f"{share:g}" for share in active], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("% of the pixels active")
    axes.legend(fontsize=7, frameon=False)


def time_by_kind(runs: Mapping[str, dict[str, Any]]) -> Figure:
    """Draw where a frame's time goes, a bar a run.

    Args:
        runs: by label, what `networks.Result.to_dict` gave.
    """
    figure, (axes,) = _panels(1, width=9.0, height=1.4 + 0.45 * len(runs))
    widest = max(sum(k["ms"] for k in run["kinds"]) for run in runs.values())
    colors: dict[str, Any] = {}
    for row, run in enumerate(runs.values()):
        left = 0.0
        for kind, ms in _bars(run["kinds"], SMALL_SHARE * widest):
            new = kind not in colors
            color = colors.setdefault(kind, f"C{len(colors) % 10}" if kind != "other" else "#bbb")
            axes.barh(row, ms, left=left, color=color, label=kind if new else None, height=0.7,
                      hatch="//" if len(colors) > 10 and new else None)
            left += ms
    axes.set_yticks(range(len(runs)), list(runs), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame")
    figure.legend(loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def _bars(kinds: Sequence[dict[str, Any]], least_ms: float) -> list[tuple[str, float]]:
    bars = [(k["kind"], k["ms"]) for k in kinds if k["ms"] >= least_ms]
    rest = sum(k["ms"] for k in kinds if k["ms"] < least_ms)
    return [*bars, ("other", rest)] if rest else bars


def layer_efficiency(results: Mapping[str, Sequence[LayerResult]]) -> Figure:
    """Draw each layer's efficiency against its active share, and the geometric mean.

    Args:
        results: a panel each, by title.
    """
    figure, panels = _panels(len(results))
    for axes, (title, layers) in zip(panels, results.items(), strict=True):
        means: dict[float, list[float]] = {}
        for layer in layers:
            points = [(p.share, p.efficiency) for p in layer.points if p.efficiency is not None]
            axes.plot([100 * share for share, _ in points], [found for _, found in points],
                      color="#1f6fb2", alpha=0.25, linewidth=0.8)
            for share, found in points:
                means.setdefault(share, []).append(found)
        axes.plot([100 * share for share in means],
                  [statistics.geometric_mean(found) for found in means.values()], "o-",
                  color="#000000", markersize=3, label="geometric mean")
        axes.set(title=title, xlabel="% of the input's pixels active", xscale="log", ylim=(0, 1.5))
        axes.axhline(1, color="#cccccc", linewidth=0.8)
        axes.legend(fontsize=7, frameon=False)
    panels[0].set_ylabel("dense time x needed share / time")
    return figure


def _panels(number: int, width: float = 4.2, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Return a figure of no display and no toolkit, with panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * number, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, number, squeeze=False)[0])
