"""The backend: which nodes it runs, and by what."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.fx import GraphModule

from deltaconvert.backends import reference
from deltaconvert.backends.base import Backend, Buffers, Scratch, Step
from deltaconvert.backends.cuda import (
    convolution,
    norms,
    pixels,
    pooling,
    regions,
    sparsify,
    uncompared,
    whole,
    windows,
)
from deltaconvert.backends.cuda.candidates import joint_name, union, united_before
from deltaconvert.backends.cuda.context import Context, Tally
from deltaconvert.backends.cuda.kinds import CudaStep, Kind, Program, Unfit
from deltaconvert.backends.cuda.runner import Runner
from deltaconvert.cuda.arguments import MOST_SOURCES
from deltaconvert.cuda.loader import NUMBERS
from deltaconvert.nodes import DeltaNode, EdgeSpec
from deltaconvert.operators.cat import cat
from deltaconvert.state import State

LARGEST_INDEX = 2**31 - 1
MOST_LANES = 2**16 - 1  # a grid has no more rows
# By what a node runs: the first that it fits.
KINDS: dict[str, Kind] = {
    "sparsify": sparsify,
    "uncompared": uncompared,
    # Of maps as wholes, each of operators of its own.
    "pooling": pooling,
    "windows": windows,
    "norm": norms,
    # At the candidates. `pixels` takes any local node: poolings to few pixels go before it, and
    # behind it convolutions, of which it takes the depthwise ones and leaves the others.
    "regions": regions,
    "pixels": pixels,
    "convolution": convolution,
    # The last, because it takes everything.
    "whole": whole,
}


class Prepared(NamedTuple):
    """How a node runs, and what it needs for that, once a program.

    Args:
        kind: of `KINDS`.
        data: the kind's own.
    """

    kind: str
    data: Any


@dataclass
class CudaBackend(Program, Backend):
    """See the package. An instance belongs to one program and may serve many streams."""

    name: str = "cuda"
    unfused = frozenset({"prelu"})  # the kernels have one slope for all channels
    counters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with nothing prepared."""
        super().__post_init__()
        self.prepared: dict[str, Prepared] = {}
        self.scratch: dict[str, list[str]] = {}  # names of working memory, by node

    def supports(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run by ``reference``."""
        about = node.about
        if reason := _edge_refusal(about.output):
            return reason
        if about.rule == "sparsify" and not about.output.has_lanes:
            return f"{about.name} has no dimension of lanes"
        dtype = about.output.dtype
        if dtype not in NUMBERS and (about.rule == "sparsify" or (
                about.rule == "local" and dtype is not None and dtype.is_floating_point)):
            return f"{about.name} is {dtype}; the kernels compute {', '.join(map(str, NUMBERS))}"
        return None if about.rule == "sparsify" or about.inputs else "it has no inputs"

    def fold_filters(self, node: DeltaNode) -> Prepared:
        """Settle how the node runs; derive filters in the layout of its kernel."""
        for name, kind in KINDS.items():
            with suppress(Unfit):
                prepared = Prepared(name, kind.prepare(node, self))
                self.prepared[node.about.name] = prepared
                return prepared
        raise AssertionError("the last kind takes everything")

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return lists of candidates, which nodes share, and memory for sums and new values."""
        name = node.about.name
        if node.about.aliases:
            self._plan_union(node)
        if node.about.aliases or self._too_many(node):
            self.counters[name] = 1
            return []
        kind, data = self.prepared[name]
        scratch, counters = KINDS[kind].plan(node, data, self)
        self.counters[name] = 1 + counters
        if kind == "uncompared":  # which keeps a mask alone
            self.scratch[name] = []
            return scratch
        self.tables.producers.add(name)  # behind: a node does not read itself
        self.tables.markers.add(name)
        self.scratch[name] = [want.name for want in scratch]
        return scratch

    def _plan_union(self, node: DeltaNode) -> None:
        """Settle which union waits for which: as for lists, the first to want one makes it."""
        names = [spec.name for spec in node.about.inputs]
        done = united_before(node, self.tables.unions)
        self.scratch[node.about.name] = [joint_name(names[:n]) for n in {done, len(names)} if n]
        self.tables.unions.add(joint_name(names))

    def bind(self, node: DeltaNode, weights: Prepared, buffers: Buffers) -> Step:
        """Return the step of a node; what is counted on the device needs no answer."""
        if self._too_many(node):
            return reference.create(self.config).bind(node, None, buffers)
        context = self.context(buffers.state)
        tally = self._tally(node, context)
        step, tally.candidates, tally.candidates_are_scheduled = KINDS[weights.kind].bind(
            node, weights.data, buffers, context, self)
        return step

    def bind_union(self, node: DeltaNode, buffers: Buffers) -> Step:
        """Return the step of a concatenation that was written in place."""
        context = self.context(buffers.state)
        tally = self._tally(node, context)
        tally.candidates = [tally.changed]
        return CudaStep(self.launcher, union(node, buffers, context), buffers)

    def runner(self, graph_module: GraphModule, nodes: list[DeltaNode], state: State) -> Runner:
        """Return what runs a stream's frames, once all of its steps are bound."""
        return Runner(graph_module, nodes, state, self.context(state), self, self.scratch)

    def context(self, state: State) -> Context:
        """Return the stream's context; made with its first step."""
        if state.context is None:
            state.context = Context(state, self.device, self.launcher,
                                    sum(self.counters.values()), self.tables.bits)
        assert isinstance(state.context, Context)
        return state.context

    def _tally(self, node: DeltaNode, context: Context) -> Tally:
        tally = Tally(context.count(), [])
        context.tallies[node.about.name] = tally
        return tally

    def _too_many(self, node: DeltaNode) -> bool:
        """Whether a concatenation turned out to need a kernel with more inputs than there is."""
        about = node.about
        return about.function is cat and len(about.inputs) > MOST_SOURCES and not about.aliases


def _edge_refusal(edge: EdgeSpec) -> str | None:
    if edge.shape is None:
        return None
    if 0 in edge.shape:
        return f"{edge.name} is empty"
    pixels = math.prod(edge.mask_shape)
    if max(pixels, math.prod(edge.shape) // pixels) > LARGEST_INDEX:
        return f"{edge.name} has more pixels, or numbers in one, than 32 bits count"
    if edge.mask_shape[0] > MOST_LANES:
        return f"{edge.name} has more than {MOST_LANES} lanes"
    return None
