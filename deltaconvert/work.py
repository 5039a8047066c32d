"""The work of many frames, by node and by resolution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from deltaconvert.checking.report import StageReport
from deltaconvert.islands import IslandsStream
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import NodeStats
from deltaconvert.stream import Stream


def ratio(part: float, whole: float) -> float:
    """Return a quotient: 0 of nothing, and infinite where only the whole is nothing."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


class Work:
    """Each node's work, over all frames but the first."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.by_node: dict[str, NodeStats] = {}

    def add(self, stream: Stream | IslandsStream) -> None:
        """Add the last frame's."""
        for name, work in stream.last.items():
            self.by_node.setdefault(name, NodeStats()).add(work)

    def of(self, nodes: Iterable[DeltaNode]) -> list[NodeStats]:
        """Return the work of some nodes."""
        return [self.by_node.get(node.about.name, NodeStats()) for node in nodes]

    def total(self, nodes: Iterable[DeltaNode] | None = None) -> NodeStats:
        """Add up the work of some nodes, or of all."""
        total = NodeStats()
        for work in self.by_node.values() if nodes is None else self.of(nodes):
            total.add(work)
        return total

    def input_ratio(self, nodes: Sequence[DeltaNode]) -> float:
        """Return the share of the inputs' pixels that changed."""
        return self.total(n for n in nodes if n.about.rule == "sparsify").update_ratio_out

    def mean_ratio(self, nodes: Sequence[DeltaNode]) -> float:
        """Return the mean over the nodes of the share of their pixels that changed."""
        ratios = [w.update_ratio_out for w in self.of(n for n in nodes
                                                      if n.about.rule != "sparsify")]
        return statistics.fmean(ratios) if ratios else 0.0

    def stages(self, nodes: Sequence[DeltaNode]) -> list[StageReport]:
        """Sum up by resolution, the largest first."""
        groups: dict[str, list[DeltaNode]] = {}
        for node, scale in zip(nodes, scales(nodes), strict=True):
            if node.about.rule != "sparsify":
                groups.setdefault(scale, []).append(node)
        whole = self.total().dense
        made = []
        for scale, members in sorted(groups.items(), key=lambda item: scale_order(item[0])):
            total = self.total(members)
            made.append(StageReport(
                scale, len(members), total.update_ratio_out, ratio(total.dense, whole),
                ratio(total.needed, total.dense), ratio(total.scheduled, total.dense)))
        return made


OTHER = "other"


def scales(nodes: Sequence[DeltaNode]) -> list[str]:
    """Return each node's resolution against the largest input's: ``1``, ``1/2``, ``x2``.

    ``other`` is what is not a map, and a map of one pixel.
    """
    doors = [n.about.output.shape for n in nodes
             if n.about.rule == "sparsify" and n.about.output.is_map]
    size = max(((s[2], s[3]) for s in doors if s is not None), default=(0, 0))
    return [_scale(node, size) for node in nodes]


def _scale(node: DeltaNode, size: tuple[int, int]) -> str:
    spec = node.about.output
    if not spec.is_map or spec.pixels == 1 or 0 in size or spec.shape is None:
        return OTHER
    found = spec.shape[2:]
    if found[0] > size[0]:
        return f"x{round(found[0] / size[0])}"
    for power in range(9):  # odd sizes are rounded up or down at each halving
        exact = [n / 2**power for n in size]
        if all(math.floor(e) <= n <= math.ceil(e) for e, n in zip(exact, found, strict=True)):
            return f"1/{2**power}" if power else "1"
    return f"1/{round(size[0] / found[0])}"


def scale_order(scale: str) -> tuple[bool, float]:
    """Return what sorts resolutions, the largest first."""
    if scale == OTHER:
        return True, 0.0
    if scale.startswith("x"):
        return False, -float(scale[1:])
    return False, float(scale.rpartition("/")[2]) - 0.5  # "1" before "1/2"
