"""What `validate` found, as data and as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltaconvert.checking.law import Breach
from deltaconvert.words import count, text_table

# Below this an output that never changes is nearly right, and a small error says little.
SMALL_CHANGE = 0.01


@dataclass(frozen=True)
class OutputReport:
    """One output, converted against dense, over all frames.

    Args:
        name: its place in what the model returns: ``out``, ``0``, ``boxes.1``.
        max_abs: the largest error of a number, in the output's units.
        max_relative: the same over the largest magnitude of the dense output in that frame;
            the largest such ratio of all frames.
        rms: root mean square of the error over all frames.
        relative_rms: ``rms`` over the dense output's root mean square.
        worst_frame: index of the frame with the largest RMS error.
        worst_relative_rms: that frame's RMS error over the dense output's RMS of all frames;
            this is what is held against the tolerance, so that one bad frame cannot hide.
        slope: growth of a frame's RMS error, in the output's units a frame (least squares).
        cosine: of converted and dense, all frames as one vector; NaN where one is zero.
        frozen_rms, frozen_relative_rms: the error of an output that stays as it was in
            frame 0: what a network that sees no change would have had.
        tolerance: largest ``worst_relative_rms`` allowed; ``None`` where none is set.
        max_abs_allowed: largest ``max_abs`` allowed; ``None`` where none is set.
        frame_rms, frame_frozen_rms: each frame's RMS error, and the frozen output's.
        not_finite: share of the dense output's numbers that are NaN or infinite.
    """

    name: str
    max_abs: float
    max_relative: float
    rms: float
    relative_rms: float
    worst_frame: int
    worst_relative_rms: float
    slope: float
    cosine: float
    frozen_rms: float
    frozen_relative_rms: float
    tolerance: float | None
    max_abs_allowed: float | None
    frame_rms: list[float]
    frame_frozen_rms: list[float]
    not_finite: float

    @property
    def judged(self) -> bool:
        """Whether there is a tolerance to hold it against."""
        return self.tolerance is not None or self.max_abs_allowed is not None

    @property
    def passed(self) -> bool:
        """Whether it is within every tolerance that is set; an error of NaN never is.

        Nor is an output of which no number is finite: nothing was compared.
        """
        relative = self.tolerance is None or self.worst_relative_rms <= self.tolerance
        return self.not_finite < 1 and relative and (
            self.max_abs_allowed is None or self.max_abs <= self.max_abs_allowed)

    @property
    def remark(self) -> str:
        """What makes the figures say less than they seem to; empty where nothing does."""
        if self.not_finite == 1:
            return ("nothing was compared: the dense network's own output is NaN or infinite "
                    "throughout. Look at its weights, and at how frames are normalised")
        if self.not_finite:
            return (f"{_share(self.not_finite)} of the dense network's own output is NaN or "
                    "infinite, and only the rest has an error")
        if len(self.frame_rms) == 1:
            return "one frame proves nothing: the first frame is computed whole"
        if self.tolerance is not None and self.frozen_relative_rms <= self.tolerance:
            return ("the clip proves nothing: an output frozen at frame 0 is off by only "
                    f"{_share(self.frozen_relative_rms)}, and would pass too")
        if self.rms > self.frozen_rms / 2:
            return (f"no better than standing still: off by {_share(self.relative_rms)}, where an "
                    f"output frozen at frame 0 is off by {_share(self.frozen_relative_rms)}")
        if self.frozen_relative_rms < SMALL_CHANGE and self.rms > self.frozen_rms / 10:
            return ("the clip proves little: an output frozen at frame 0 is off by only "
                    f"{_share(self.frozen_relative_rms)}")
        return ""


@dataclass(frozen=True)
class StageReport:
    """All local nodes whose maps have one resolution, first frame apart.

    Args:
        scale: resolution against the input's, ``1/8``; ``other`` for what is not a map.
        nodes: how many.
        update_ratio: share of their pixels that changed.
        dense_share: their share of the dense multiply-adds.
        needed, scheduled: multiply-adds over their own dense ones.
    """

    scale: str
    nodes: int
    update_ratio: float
    dense_share: float
    needed: float
    scheduled: float


@dataclass(frozen=True)
class SpeedReport:
    """Milliseconds a frame: medians without the first frame, and the first by itself.

    ``dense_ms`` and ``delta_ms`` are NaN for a clip of one frame.
    """

    dense_ms: float
    delta_ms: float
    first_dense_ms: float
    first_delta_ms: float
    threads: int

    @property
    def speedup(self) -> float:
        """Dense time over converted time."""
        return self.dense_ms / self.delta_ms if self.delta_ms else math.nan


@dataclass(frozen=True)
class Report:
    """Dense and converted, side by side over a clip. ``print`` it, or take `to_dict`.

    Args:
        frames, lanes: how many.
        dtype: of the first input.
        exact: no node and no input may hold anything back.
        settings: thresholds and backends, in words.
        outputs: one report an output.
        breaches: of the first frame that broke the law, in order of execution.
        law_frames, law_nodes: how many frames the law was checked in, at how many nodes.
        update_ratio_input, update_ratio_nodes: share of changed pixels in the frames, and in
            the nodes' outputs (a plain mean over the nodes); first frame apart.
        needed, scheduled: multiply-adds over the dense ones; first frame apart.
        stages: the same by resolution.
        speed: times.
        state_bytes: of the converted model's stream.
        activation_bytes: of all values that the same graph computes in a dense frame.
        frame_ratio_input, frame_ratio_nodes: the update ratios of each frame, the first too.
    """

    frames: int
    lanes: int
    dtype: str
    exact: bool
    settings: str
    outputs: list[OutputReport]
    breaches: list[Breach]
    law_frames: int
    law_nodes: int
    update_ratio_input: float
    update_ratio_nodes: float
    needed: float
    scheduled: float
    stages: list[StageReport]
    speed: SpeedReport
    state_bytes: int
    activation_bytes: int
    frame_ratio_input: list[float]
    frame_ratio_nodes: list[float]

    @property
    def judged(self) -> bool:
        """Whether a tolerance was given, or is known because nothing is held back."""
        return any(o.judged for o in self.outputs)

    @property
    def passed(self) -> bool:
        """Whether the law holds and every output is within its tolerance."""
        return not self.breaches and all(o.passed for o in self.outputs)

    @property
    def remarks(self) -> list[str]:
        """What is to be said beside the figures, one sentence or two each."""
        said = [f"{o.name}: {o.remark}" for o in self.outputs if o.remark]
        if not self.judged:
            said.append("no tolerance given: not judged, but for the law. Above threshold 0 the "
                        "tolerance is yours to say (tolerance=, relative RMS, or max_abs=)")
        if not self.breaches and any(not o.passed and o.not_finite < 1 for o in self.outputs):
            said.append(self._why_not_the_law())
        return said

    def _why_not_the_law(self) -> str:
        if not self.exact:
            return ("every node is within its threshold: the error is what the thresholds cost. "
                    "Lower them, or those of the first layers")
        return ("every node computes what the converted graph says: that graph is not the dense "
                "model it was compared with (other weights, training mode, or a conversion error)")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: numbers that are not finite become ``None``."""
        data = dataclasses.asdict(self)
        data["outputs"] = [dataclasses.asdict(o) | {"passed": o.passed, "remark": o.remark}
                           for o in self.outputs]
        data["breaches"] = [b.to_dict() for b in self.breaches]
        data["speed"]["speedup"] = self.speed.speedup
        data |= {"passed": self.passed, "judged": self.judged, "remarks": self.remarks}
        plain: dict[str, Any] = jsonable(data)
        return plain

    def __str__(self) -> str:
        """Return the report as aligned plain text."""
        head = (f"{count(self.frames, 'frame')} of {count(self.lanes, 'lane')}, {self.dtype}; "
                f"{self.settings}")
        parts = [head, "", text_table(outputs_rows(self.outputs))]
        if self.frames > 1:
            parts += ["", stages_table(self.stages)]
        parts += ["", text_table(self.lines(), align="l"), *map(str, self.breaches[:1])]
        if len(self.breaches) > 1:
            parts.append(f"  ({len(self.breaches) - 1} more nodes after it break the law in that "
                         "frame, perhaps as a consequence)")
        if self.remarks:
            parts += ["", *(f"- {remark}" for remark in self.remarks)]
        return "\n".join([*parts, "", self.verdict])

    @property
    def verdict(self) -> str:
        """The last line."""
        if not self.passed:
            return "FAILED"
        return "PASSED" if self.judged else "PASSED (the law alone)"

    def lines(self) -> list[tuple[str, str]]:
        """Return the figures that are not tables, a label and a text each."""
        speed = self.speed
        holds = "broken" if self.breaches else "holds"
        lines = [
            ("time", f"first frame: dense {speed.first_dense_ms:.1f} ms, converted "
                     f"{speed.first_delta_ms:.1f} ms (allocates, and may compile)"),
            ("memory", f"state {self.state_bytes / 1e6:.1f} MB; all activations of a dense frame "
                       f"{self.activation_bytes / 1e6:.1f} MB"),
            ("law", f"{holds}: {self.law_nodes} nodes checked in "
                    f"{count(self.law_frames, 'frame')}"),
        ]
        if self.frames == 1:
            return lines
        return [
            ("changed", f"{self.update_ratio_input:.1%} of the input's pixels, "
                        f"{self.update_ratio_nodes:.1%} of a node's on average"),
            ("multiply-adds", f"{self.needed:.1%} of dense needed, {self.scheduled:.1%} computed"),
            ("time", f"dense {speed.dense_ms:.1f} ms, converted {speed.delta_ms:.1f} ms a frame: "
                     f"{speed.speedup:.2f}x ({count(speed.threads, 'thread')}, medians)"),
            ("", lines[0][1]), *lines[1:]]


def outputs_rows(outputs: Sequence[OutputReport]) -> list[tuple[str, ...]]:
    """Return the outputs' figures as rows of a table, with its header."""
    rows: list[tuple[str, ...]] = [
        ("output", "max abs", "max rel", "RMS", "rel RMS", "worst frame", "slope", "cosine",
         "frozen RMS", "frozen rel", "allowed", "")]
    rows += [(o.name, f"{o.max_abs:.2e}", f"{o.max_relative:.2e}", f"{o.rms:.2e}",
              f"{o.relative_rms:.2e}", f"{o.worst_relative_rms:.2e} at {o.worst_frame}",
              f"{o.slope:+.1e}", f"{o.cosine:.6f}", f"{o.frozen_rms:.2e}",
              f"{o.frozen_relative_rms:.2e}", _allowed(o),
              ("ok" if o.passed else "too far off") if o.judged else "") for o in outputs]
    return rows


def _allowed(output: OutputReport) -> str:
    limits = [] if output.tolerance is None else [f"rel {output.tolerance:.1e}"]
    limits += [] if output.max_abs_allowed is None else [f"abs {output.max_abs_allowed:.1e}"]
    return ", ".join(limits) or "-"


def stages_table(stages: Sequence[StageReport]) -> str:
    """Lay out the work by resolution."""
    return text_table(stages_rows(stages))


def stages_rows(stages: Sequence[StageReport]) -> list[tuple[str, ...]]:
    """Return the work by resolution as rows of a table, with its header."""
    rows: list[tuple[str, ...]] = [
        ("resolution", "nodes", "changed", "dense work", "needed", "computed")]
    rows += [(s.scale, str(s.nodes), f"{s.update_ratio:.1%}", f"{s.dense_share:.1%}",
              f"{s.needed:.1%}", f"{s.scheduled:.1%}") for s in stages]
    return rows


def jsonable(value: Any) -> Any:
    """Return the same nested data with ``None`` for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _share(ratio: float) -> str:
    return f"{ratio:.2%}" if ratio >= 1e-4 else f"{ratio:.1e}"
