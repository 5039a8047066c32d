"""The page of a run."""

from __future__ import annotations

import math

from deltaconvert.checking.report import stages_rows
from deltaconvert.pages.page import Figure, Section, Table, Text, page
from deltaconvert.pages.plots import lines_over_frames
from deltaconvert.running.summary import ClipSummary, RunSummary


def run_page(summary: RunSummary, subtitle: str) -> str:
    """Return a run's summary as a page: tables, and times and update ratios by call."""
    clips: list[tuple[str, ...]] = [("clip", "size", "frames", "files", "")]
    clips += [_row(clip) for clip in summary.clips]
    later = summary.calls > len(summary.first_ms)
    sections = [
        Section("Figures", [Table([("", ""), *summary.lines()])]),
        Section("Time", [Figure(
            lines_over_frames({"converted": _later(summary)}, "ms a call",
                              levels={"dense": summary.dense.dense_ms} if summary.dense else {}),
            "time of each call but the first ones, which allocate and may compile")]),
        Section("Work", [
            Table(stages_rows(summary.stages)),
            Figure(lines_over_frames({"changed": [100 * r for r in summary.ratios]}, "changed, %"),
                   "share of a node's pixels that changed, mean over the nodes"),
        ] if later else []),
        Section("Clips", [Table(clips)]),
        Section("Broken off", [Text(f"{c.name}: {c.broken}") for c in summary.clips if c.broken]),
    ]
    ended = ("interrupted", False) if summary.interrupted else None
    return page("deltaconvert run", subtitle, sections, ended)


def _later(summary: RunSummary) -> list[float]:
    """The times with a gap for each stream's first call, which come first."""
    firsts = len(summary.first_ms)
    return [math.nan] * firsts + summary.ms[firsts:]


def _row(clip: ClipSummary) -> tuple[str, ...]:
    return (clip.name, f"{clip.size[0]}x{clip.size[1]}", str(clip.frames), ", ".join(clip.files),
            "broken off" if clip.broken else "")
