"""Plots over frames, as SVG that goes into a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (4.8, 2.7)  # on a phone's 360 px a letter of 9 pt is then still 9 px high
STYLE: Any = {  # matplotlib's own type lists every setting by name
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "svg.fonttype": "none",
         "svg.hashsalt": "deltaconvert", "lines.linewidth": 1.2,
         "font.family": "sans-serif"}


def lines_over_frames(series: Mapping[str, Sequence[float]], y_label: str, *,
                      log: bool = False, levels: Mapping[str, float] | None = None) -> str:
    """Plot numbers a frame.

    Args:
        series: by name; numbers that are not finite, and on a logarithmic axis zeros, leave
            a gap.
        y_label: with the unit.
        log: make the axis logarithmic, where there is anything above 0.
        levels: horizontal lines, by name.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        drawn = [_line(axes, name, values, log) for name, values in series.items()]
        for name, level in (levels or {}).items():
            if math.isfinite(level) and (level > 0 or not log):
                axes.axhline(level, linestyle="--", color="tab:red", linewidth=1, label=name)
        if log and any(drawn):
            axes.set_yscale("log")
        axes.set_xlabel("frame")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) + len(levels or {}) > 1:
            axes.legend(fontsize=8, frameon=False)
        return as_svg(figure)


def bars(lengths: Mapping[str, float], x_label: str) -> str:
    """Plot a bar for each name, from the top.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(SIZE_INCHES[0], 0.9 + 0.28 * len(lengths)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        drawn = axes.barh(list(lengths), list(lengths.values()), height=0.7)
        axes.bar_label(drawn, fmt="{:.2f}", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        return as_svg(figure)


def _line(axes: Axes, name: str, values: Sequence[float], log: bool) -> bool:
    """Draw one; whether there was anything to draw."""
    shown = [v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in values]
    marker = "o" if len(values) < 30 else None
    axes.plot(range(len(shown)), shown, label=name, marker=marker, markersize=2.5)
    return any(not math.isnan(v) for v in shown)


def as_svg(figure: Figure) -> str:
    """Return a figure as one ``<svg>`` element, without what belongs in a file of its own."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg"):]
