"""The page of a validation."""

from __future__ import annotations

from deltaconvert.checking.report import OutputReport, Report, outputs_rows, stages_rows
from deltaconvert.pages.page import Figure, Lines, Part, Section, Table, Text, page
from deltaconvert.pages.plots import lines_over_frames


def validation_page(report: Report, subtitle: str) -> str:
    """Return what `validate` found as a page: tables, and errors and update ratios by frame."""
    sections = [
        Section("Outputs", [Table(outputs_rows(report.outputs)),
                            *(_errors(output) for output in report.outputs)]),
        Section("Work", _work(report)),
        Section("Figures", [Table([("", ""), *report.lines()])]),
        Section("Where the law is broken", [Lines(str(b)) for b in report.breaches]),
        Section("Remarks", [Text(remark) for remark in report.remarks]),
    ]
    return page("deltaconvert validate", f"{subtitle}; {report.settings}", sections,
                (report.verdict, report.passed))


def _errors(output: OutputReport) -> Part:
    levels = {}
    if output.tolerance is not None and output.rms and output.relative_rms:
        levels["tolerance"] = output.tolerance * output.rms / output.relative_rms
    return Figure(
        lines_over_frames({"converted": output.frame_rms, "frozen": output.frame_frozen_rms},
                          f"RMS error of {output.name}", log=True, levels=levels),
        f"{output.name}: error against dense, and that of an output frozen at frame 0")


def _work(report: Report) -> list[Part]:
    if report.frames < 2:
        return []
    ratios = {"input": report.frame_ratio_input, "nodes": report.frame_ratio_nodes}
    return [Table(stages_rows(report.stages)),
            Figure(lines_over_frames({n: [100 * r for r in v] for n, v in ratios.items()},
                                     "changed, %"),
                   "share of the pixels that changed: in the input, and in a node on average")]
