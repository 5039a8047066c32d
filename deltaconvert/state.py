"""What one stream keeps from frame to frame, as one explicit object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from deltaconvert.nodes import DeltaNode, EdgeSpec

if TYPE_CHECKING:
    from deltaconvert.backends.base import Step

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
        counts: set pixels of the mask, a lane.
        cache: what readers derived from the mask in this frame (lists of candidates);
            emptied whenever the mask is written.
    """

    __slots__ = ("cache", "counts", "mask", "spec", "threshold", "value")

    def __init__(self, spec: EdgeSpec, value: Any, mask: Tensor, threshold: float = 0.0) -> None:
        """Wrap buffers that the plan allocated."""
        self.spec = spec
        self.value = value
        self.mask = mask
        self.threshold = np.full(mask.shape[0], threshold)
        self.counts: Sequence[int] = [0] * mask.shape[0]
        self.cache: dict[Any, Any] = {}

    def publish(self, counts: Sequence[int]) -> None:
        """Say that value and mask are written, with the mask's set pixels a lane."""
        self.counts = counts
        self.cache.clear()

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


@dataclass
class State:
    """Edges, bound steps and counters of one stream.

    Args:
        lanes: the batch size.
        fresh: a lane's flag: its next frame is a first frame (full masks, no truncation).
        relative: thresholds are in units of the value's standard deviation.
        edges, steps: by node name.
        last: the last frame's work, by node name.
        observer: called with every node and its edge, right after its step.
    """

    lanes: int
    fresh: list[bool]
    relative: bool = False
    edges: dict[str, Edge] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    last: dict[str, NodeStats] = field(default_factory=dict)
    observer: Observer | None = None

    def run(self, node: DeltaNode, *inputs: Any) -> Edge:
        """Run a node's step, count its work, show the edge to the observer, return it."""
        about = node.about
        edge = self.edges[about.name]
        entry = about.rule == "sparsify"
        work = self.steps[about.name](*inputs) if entry else self.steps[about.name]()
        sources = () if entry else tuple(self.edges[spec.name] for spec in about.inputs)
        per_pixel = node.dense_multiply_adds // about.output.pixels
        self.last[about.name] = NodeStats(
            1, sum(sum(e.counts) for e in sources), sum(e.mask.numel() for e in sources),
            work.candidates, sum(edge.counts), edge.mask.numel(),
            work.candidates * per_pixel, work.scheduled, self.lanes * node.dense_multiply_adds)
        if self.relative and not entry and any(self.fresh):
            self._settle_threshold(about.threshold, edge)
        if self.observer is not None:
            self.observer(node, edge)
        return edge

    def _settle_threshold(self, units: float, edge: Edge) -> None:
        if not (isinstance(edge.value, Tensor) and edge.value.is_floating_point()):
            return
        lanes = edge.value if edge.spec.has_lanes else edge.value[None]
        for lane in range(len(edge.threshold)):
            if self.fresh[lane] and lanes[lane].numel() > 1:
                edge.threshold[lane] = units * float(lanes[lane].float().std())
