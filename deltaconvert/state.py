"""What one stream keeps from frame to frame, as one explicit object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from deltaconvert.nodes import DeltaNode, EdgeSpec

if TYPE_CHECKING:
    from deltaconvert.backends.base import Step, Work

Observer = Callable[[DeltaNode, "Edge"], None]


class Edge:
    """A value and its update mask.

    Attributes:
        spec: name, shape and lanes.
        value: the map its readers see, complete; ``[N, C, H, W]`` in channels-last memory
            for maps (pixels may be further apart than C where it is part of a
            concatenation).
        mask: uint8, `EdgeSpec.mask_shape`: 1 where the value may have changed this frame.
        threshold: float64, one a lane (one where there are no lanes): what the producer
            may hold back. Settled at a lane's first frame where it is in units of the
            value's standard deviation.
        tally: int64 ``[lanes + 1]``: set pixels of the mask, a lane, and a version, which is
            new whenever the mask is written. Compiled steps write it themselves.
        cache: what Python derived from the mask in this frame; emptied when it publishes.
    """

    __slots__ = ("_counted", "cache", "mask", "spec", "tally", "threshold", "value")

    def __init__(self, spec: EdgeSpec, value: Any, mask: Tensor, threshold: float = 0.0) -> None:
        """Wrap buffers that the plan allocated."""
        self.spec = spec
        self.value = value
        self.mask = mask
        self.threshold = np.full(mask.shape[0], threshold)
        self.tally = np.zeros(mask.shape[0] + 1, np.int64)
        self._counted = True
        self.cache: dict[Any, Any] = {}

    def publish(self, counts: Sequence[int] | None) -> None:
        """Say that value and mask are written, with the mask's set pixels a lane.

        Nothing, where the mask was written on a device that must not be waited for.
        """
        self._counted = counts is not None
        if counts is not None:
            self.tally[:-1] = counts
        self.tally[-1] += 1
        self.cache.clear()

    @property
    def counts(self) -> list[int]:
        """Set pixels of the mask, a lane; where a device has not been asked yet, it is now."""
        if self._counted:
            counted: list[int] = self.tally[:-1].tolist()
        else:
            counted = self.mask.reshape(self.mask.shape[0], -1).sum(1).tolist()
        return counted

    @property
    def changed(self) -> bool:
        """Whether any pixel of any lane changed."""
        return any(self.counts)


@dataclass
class NodeStats:
    """Work of one node, summed over frames and lanes.

    Args:
        frames: how many frames.
        pixels_in, total_in: mask pixels of the inputs, and how many there were.
        candidates: output pixels re-evaluated because they had to be.
        pixels_out, total_out: mask pixels of the output, and how many there were.
        needed, scheduled, dense: multiply-adds.
    """

    frames: int = 0
    pixels_in: int = 0
    total_in: int = 0
    candidates: int = 0
    pixels_out: int = 0
    total_out: int = 0
    needed: int = 0
    scheduled: int = 0
    dense: int = 0

    def add(self, other: NodeStats) -> None:
        """Add another's counts to these."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def update_ratio_in(self) -> float:
        """Share of the inputs' pixels that changed."""
        return self.pixels_in / self.total_in if self.total_in else 0.0

    @property
    def update_ratio_out(self) -> float:
        """Share of the output's pixels that changed."""
        return self.pixels_out / self.total_out if self.total_out else 0.0

    @property
    def amplification(self) -> float:
        """Multiply-adds scheduled over needed (1 where none were needed)."""
        return self.scheduled / self.needed if self.needed else 1.0


class FrameRunner(Protocol):
    """What runs a stream's frames where a backend does more than one step after the other.

    Attributes:
        plain: gradients and inference mode are nothing to any frame without an observer.
    """

    plain: bool

    def __call__(self, frames: list[Any]) -> list[Any]:
        """Run a frame that was examined; return the outputs, as copies."""

    def check(self) -> None:
        """Wait for the device; raise `FrameError` if it refused a frame."""

    def last(self) -> dict[str, NodeStats]:
        """Return the last frame's work that was counted on the device."""

    def totals(self) -> dict[str, NodeStats]:
        """Return the work of all frames that was counted on the device."""


@dataclass
class State:
    """Edges, bound steps and counters of one stream.

    Args:
        lanes: the batch size.
        fresh: bool ``[lanes]``: a lane's next frame is a first frame (full masks, no
            truncation).
        relative: thresholds are in units of the value's standard deviation.
        masks: uint8, the memory of all masks.
        edges, steps: by node name.
        counted, added: the work of the last frame and of all, by node name, as far as it was
            not counted on a device; see `last` and `totals`.
        observer: called with every node and its edge, right after its step.
        context: what a backend keeps for the whole stream.
        runner: what runs the frames, if not the graph alone.
    """

    lanes: int
    fresh: np.ndarray
    relative: bool = False
    masks: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8, device="cpu"))
    edges: dict[str, Edge] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    counted: dict[str, NodeStats] = field(default_factory=dict)
    added: dict[str, NodeStats] = field(default_factory=dict)
    observer: Observer | None = None
    context: Any = None
    runner: FrameRunner | None = None

    def __post_init__(self) -> None:
        """Take any sequence of flags; what is bound to the state reads them in place."""
        self.fresh = np.array(self.fresh, np.bool_)

    def run(self, node: DeltaNode, *inputs: Any) -> Edge:
        """Run a node's step, count its work, show the edge to the observer, return it."""
        about = node.about
        edge = self.edges[about.name]
        entry = about.rule == "sparsify"
        work = self.steps[about.name](*inputs) if entry else self.steps[about.name]()
        if work is None:
            edge.publish(None)
        else:
            self._count(node, work)
        if self.relative and not entry and self.fresh.any():
            self._settle_threshold(about.threshold, edge)
        if self.observer is not None:
            self.observer(node, edge)
        return edge

    def last(self) -> dict[str, NodeStats]:
        """Return the last frame's work, by node name."""
        return self.counted | (self.runner.last() if self.runner else {})

    def totals(self) -> dict[str, NodeStats]:
        """Return the work of all frames, by node name."""
        return self.added | (self.runner.totals() if self.runner else {})

    def _count(self, node: DeltaNode, work: Work) -> None:
        edge = self.edges[node.about.name]
        sources = [self.edges[spec.name] for spec in node.about.inputs]
        per_pixel = node.dense_multiply_adds // max(node.about.output.pixels, 1)
        stats = NodeStats(
            1, sum(sum(e.counts) for e in sources), sum(e.mask.numel() for e in sources),
            work.candidates, sum(edge.counts), edge.mask.numel(),
            work.candidates * per_pixel, work.scheduled, self.lanes * node.dense_multiply_adds)
        self.counted[node.about.name] = stats

    def add_frame(self) -> None:
        """Add the last frame's work to the work of all."""
        for name, work in self.counted.items():
            self.added.setdefault(name, NodeStats()).add(work)

    def _settle_threshold(self, units: float, edge: Edge) -> None:
        if not (isinstance(edge.value, Tensor) and edge.value.is_floating_point()):
            return
        lanes = edge.value if edge.spec.has_lanes else edge.value[None]
        for lane in range(len(edge.threshold)):
            if self.fresh[lane] and lanes[lane].numel() > 1:
                edge.threshold[lane] = units * float(lanes[lane].float().std())
