"""Where the milliseconds of a converted frame go, by kind of node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge
from deltaconvert.stream import Stream

REST = "outputs and the rest"


@dataclass(frozen=True)
class Kind:
    """All nodes of a kind, in a mean frame.

    Args:
        name: ``convolution 3x3``, ``add``, ``input`` ...; the last is what no node takes.
        nodes: how many.
        ms: of a frame, with what the graph around each node costs.
        share: of the whole frame.
        needed: multiply-adds.
    """

    name: str
    nodes: int
    ms: float
    share: float
    needed: float

    @property
    def gigaflops(self) -> float:
        """Needed operations a second; an add and a multiplication are two."""
        return 2 * self.needed / (self.ms * 1e6) if self.ms else 0.0


class _Watch:
    """An observer: the time from one node's end to the next one's is the next one's."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.nodes: dict[str, DeltaNode] = {}
        self.at = 0.0

    def __call__(self, node: DeltaNode, edge: Edge) -> None:
        now = time.perf_counter()
        name = node.about.name
        self.nodes[name] = node
        self.ms[name] = self.ms.get(name, 0.0) + (now - self.at) * 1e3
        self.at = time.perf_counter()


def profile(stream: Stream, frames: Sequence[Tensor]) -> list[Kind]:
    """Run a stream on over some frames and return its kinds of nodes, the slowest first.

    The stream's observer is taken off afterwards.
    """
    watch, rest = _Watch(), 0.0
    needed: dict[str, int] = {}
    stream.observe(watch)
    try:
        for frame in frames:
            watch.at = time.perf_counter()
            stream(frame)
            rest += (time.perf_counter() - watch.at) * 1e3
            for name, work in stream.last.items():
                needed[name] = needed.get(name, 0) + work.needed
    finally:
        stream.observe(None)
    return _by_kind(watch, needed, rest, len(frames))


def _by_kind(watch: _Watch, needed: dict[str, int], rest: float, frames: int) -> list[Kind]:
    groups: dict[str, list[str]] = {}
    for name, node in watch.nodes.items():
        groups.setdefault(kind_of(node), []).append(name)
    whole = sum(watch.ms.values()) + rest
    kinds = [Kind(kind, len(names), sum(watch.ms[n] for n in names) / frames,
                  sum(watch.ms[n] for n in names) / whole,
                  sum(needed.get(n, 0) for n in names) / frames)
             for kind, names in groups.items()]
    kinds.append(Kind(REST, 0, rest / frames, rest / whole, 0))
    return sorted(kinds, key=lambda kind: -kind.ms)


def kind_of(node: DeltaNode) -> str:
    """Return what a node counts as, whatever is fused into it."""
    about = node.about
    if about.rule == "sparsify":
        return "input"
    if about.rule == "unknown":
        return "unknown operators"
    if about.aliases or about.operator is None:
        return "concatenation in place" if about.aliases else "other"
    if about.operator.name not in ("conv2d", "conv_transpose2d"):
        return about.operator.name.replace("_", " ")
    return _convolution(node)


def _convolution(node: DeltaNode) -> str:
    shapes = node.about.shapes
    weight = None if shapes is None else shapes.constants.get("weight")
    if weight is None:
        return "convolution"
    groups = node.about.params.get("groups", 1)
    transposed = node.about.operator is not None and "transpose" in node.about.operator.name
    kind = "transposed" if transposed else "convolution"
    if groups > 1:
        kind = "depthwise" if weight[1] == 1 else "grouped"
    return f"{kind} {weight[2]}x{weight[3]}"
