"""What a run over clips found: times with percentiles, update ratios, speed against dense."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deltaconvert.checking.report import StageReport, jsonable, stages_table
from deltaconvert.words import count, text_table


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values (0 to 1) is at or under, interpolated.

    NaN for no values.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, part = int(place), place - int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] * (1 - part) + ordered[high] * part


@dataclass(frozen=True)
class Times:
    """Milliseconds of the calls but each stream's first: percentiles, mean, and the largest."""

    p50: float
    p90: float
    p99: float
    mean: float
    largest: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> Times:
        """Measure; NaN for none."""
        nan = math.nan
        return cls(percentile(ms, 0.5), percentile(ms, 0.9), percentile(ms, 0.99),
                   statistics.fmean(ms) if ms else nan, max(ms, default=nan))

    def __str__(self) -> str:
        """Return one line."""
        return (f"p50 {self.p50:.1f}, p90 {self.p90:.1f}, p99 {self.p99:.1f}, largest "
                f"{self.largest:.1f} ms")


@dataclass(frozen=True)
class DenseSpeed:
    """The dense network on some of the calls, right behind the converted one.

    Args:
        calls: how many were sampled.
        dense_ms, delta_ms: medians over the same calls.
    """

    calls: int
    dense_ms: float
    delta_ms: float

    @property
    def speedup(self) -> float:
        """Dense time over converted time."""
        return self.dense_ms / self.delta_ms if self.delta_ms else math.nan


@dataclass(frozen=True)
class ClipSummary:
    """One clip: its name, how many frames were done, what was written, what broke it off."""

    name: str
    size: tuple[int, int]
    frames: int
    files: list[str] = field(default_factory=list)
    broken: str = ""


@dataclass(frozen=True)
class RunSummary:
    """A run over clips. ``print`` it, or take `to_dict`.

    Args:
        clips: one a source.
        together: ``"lanes"`` or ``"streams"``.
        calls: how often the network ran: once for a frame of every lane.
        seconds: of everything, decoding and writing included.
        model: time of a call, without each stream's first.
        first_ms: of each stream's first call, which allocates and may compile.
        waiting_ms: median time a call waited for its frame to be decoded.
        post_ms: median time of post-processing, writing and drawing for a call.
        dense: the dense network on sampled calls; None where there were none.
        update_ratio_input, update_ratio_nodes: share of changed pixels in the frames, and in
            the nodes' outputs; first frames apart.
        needed, scheduled: multiply-adds over the dense ones; first frames apart.
        stages: the same by resolution.
        state_bytes: of all streams.
        settings: thresholds and backends, in words.
        threads: of PyTorch.
        interrupted: it was ended by Ctrl-C.
        ms, ratios: each call's time and its update ratio.
    """

    clips: list[ClipSummary]
    together: str
    calls: int
    seconds: float
    model: Times
    first_ms: list[float]
    waiting_ms: float
    post_ms: float
    dense: DenseSpeed | None
    update_ratio_input: float
    update_ratio_nodes: float
    needed: float
    scheduled: float
    stages: list[StageReport]
    state_bytes: int
    settings: str
    threads: int
    interrupted: bool
    ms: list[float]
    ratios: list[float]

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return sum(clip.frames for clip in self.clips)

    @property
    def fps(self) -> float:
        """Frames a second of everything, decoding and writing included."""
        return self.frames / self.seconds if self.seconds else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: numbers that are not finite become ``None``."""
        data = dataclasses.asdict(self) | {"frames": self.frames, "fps": self.fps}
        if self.dense is not None:
            data["dense"]["speedup"] = self.dense.speedup
        plain: dict[str, Any] = jsonable(data)
        return plain

    def __str__(self) -> str:
        """Return the summary as aligned plain text."""
        parts = []
        if self.calls > len(self.first_ms):
            parts += [stages_table(self.stages), ""]
        parts.append(text_table(self.lines(), align="l"))
        for clip in self.clips:
            if clip.broken:
                parts.append(f"\n{clip.name}: {count(clip.frames, 'frame')} done; {clip.broken}")
        if self.interrupted:
            parts.append(f"\ninterrupted: {count(self.frames, 'frame')} done, which is what all "
                         "of this is about")
        return "\n".join(parts)

    def lines(self) -> list[tuple[str, str]]:
        """Return the figures, a label and a text each."""
        lanes = len(self.clips) if self.together == "lanes" else 1
        each = "a frame" if lanes == 1 else f"a call of {lanes} lanes"
        first = ", ".join(f"{ms:.1f}" for ms in self.first_ms)
        lines = [
            ("frames", f"{self.frames} of {count(len(self.clips), 'clip')} in {self.seconds:.1f} "
                       f"s: {self.fps:.1f} frames a second, all included"),
            ("model", f"{self.model} {each} ({count(self.threads, 'thread')})"),
            ("", f"first {first} ms (allocates, and may compile)"),
            ("around it", f"waiting for frames {self.waiting_ms:.1f} ms, post-processing and "
                          f"writing {self.post_ms:.1f} ms {each}"),
            ("dense", _dense_line(self.dense)),
            ("changed", f"{self.update_ratio_input:.1%} of the input's pixels, "
                        f"{self.update_ratio_nodes:.1%} of a node's on average"),
            ("multiply-adds", f"{self.needed:.1%} of dense needed, {self.scheduled:.1%} computed"),
            ("memory", f"state {self.state_bytes / 1e6:.1f} MB"),
            ("settings", self.settings),
        ]
        if self.calls <= len(self.first_ms):
            return [lines[i] for i in (0, 2, 7, 8)]
        return lines


def _dense_line(dense: DenseSpeed | None) -> str:
    if dense is None or dense.calls == 0:
        return "not measured"
    return (f"{dense.dense_ms:.1f} ms, converted {dense.delta_ms:.1f} ms on the same "
            f"{count(dense.calls, 'call')}: {dense.speedup:.2f}x (medians)")
