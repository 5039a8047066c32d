"""The page of a benchmark."""

from __future__ import annotations

from typing import Any

from deltaconvert.bench.text import figure_lines, kind_rows, remarks, runtime_rows
from deltaconvert.pages.page import Figure, Section, Table, Text, page
from deltaconvert.pages.plots import bars


def benchmark_page(data: dict[str, Any], subtitle: str) -> str:
    """Return what ``bench`` measured as a page: runtimes, figures, and where a frame's time goes.

    Args:
        data: what `Result.to_dict` of `deltaconvert.bench.networks` gave.
        subtitle: of what, on what.
    """
    medians = {name: runtime["ms"]["median"] for name, runtime in data["runtimes"].items()}
    kinds = {kind["kind"]: kind["ms"] for kind in data["kinds"]}
    sections = [
        Section("Runtimes", [Table(runtime_rows(data)),
                             Figure(bars(medians, "ms a frame"), "median time of a frame")]),
        Section("Figures", [Table([("", ""), *figure_lines(data)])]),
        Section("Where the time goes", [Table(kind_rows(data["kinds"])),
                                        Figure(bars(kinds, "ms a frame"),
                                               "the converted network's, by kind of work")]),
        Section("Left out", [Text(f"{name}: {why}") for name, why in data["skipped"].items()]),
        Section("Remarks", [Text(remark) for remark in remarks(data)]),
    ]
    return page("deltaconvert bench", subtitle, sections)
