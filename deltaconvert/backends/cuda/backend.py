"""The backend: which nodes it runs, and by what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
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
    vectors,
    whole,
    windows,
)
from deltaconvert.backends.cuda.candidates import (
    Tables,
    joint_name,
    list_name,
    list_scratch,
    union,
    united_before,
)
from deltaconvert.backends.cuda.context import Context, Tally, activation_of
from deltaconvert.backends.cuda.dense import DenseStep
from deltaconvert.backends.cuda.functions import applied
from deltaconvert.backends.cuda.runner import Runner
from deltaconvert.config import Config
from deltaconvert.cuda.arguments import MOST_SOURCES
from deltaconvert.cuda.launcher import Launch, Launcher, launch_all
from deltaconvert.cuda.loader import NUMBERS
from deltaconvert.nodes import DeltaNode, EdgeSpec
from deltaconvert.operators.cat import cat
from deltaconvert.state import State

LARGEST_INDEX = 2**31 - 1
MOST_LANES = 2**16 - 1  # a grid has no more rows
# Kinds that find their candidates as they go.
WITHOUT_LIST = ("pooling", "norm", "regions", "windows")


@dataclass
class Prepared:
    """How a node runs, and what it needs for that, once a program.

    Args:
        kind: which module of this package binds it.
        data: the kind's own.
        reason: of ``"whole"``: why not sparsely.
    """

    kind: Literal["sparsify", "convolution", "pixels", "pooling", "norm", "regions",
                  "windows", "whole"]
    data: Any = None
    reason: str = ""


@dataclass
class CudaStep:
    """A node that is nothing but launches, and the buffers whose addresses they hold.

    Args:
        launcher, launches, buffers: see there.
        dense: what may run in their place, in a frame in which there is much to do.
    """

    launcher: Launcher
    launches: Sequence[Launch]
    buffers: Buffers
    dense: DenseStep | None = None

    def __call__(self) -> None:
        """Launch; the work is counted on the device."""
        launch_all(self.launcher, self.launches)


@dataclass
class CudaBackend(Backend):
    """See the package. An instance belongs to one program and may serve many streams.

    Args:
        config: of the program.
        device: of its buffers.
        launcher: what runs kernels there.
        told: fields of `convolution.Tile` that are settled, whatever the convolution.
    """

    config: Config
    device: torch.device
    launcher: Launcher
    told: Mapping[str, Any] = field(default_factory=dict)
    name: str = "cuda"
    unfused = frozenset({"prelu"})  # the kernels have one slope for all channels
    counters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with nothing prepared."""
        self.tables = Tables(self.device)
        self.prepared: dict[str, Prepared] = {}
        self.scratch: dict[str, list[str]] = {}  # names of working memory, by node

    def supports(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run by ``reference``."""
        about = node.about
        if reason := _edge_refusal(about.output):
            return reason
        if about.rule == "sparsify":
            return None if about.output.is_map else f"{about.name} is not a map of lanes"
        if len(about.inputs) > MOST_SOURCES and about.function is not cat:
            return f"it has {len(about.inputs)} inputs; the kernels take {MOST_SOURCES}"
        if not about.inputs:
            return "it has no inputs"
        opaque = next((e for e in about.inputs if e.shape is None), None)
        return f"{opaque.name} is not a tensor" if opaque else None

    def fold_filters(self, node: DeltaNode) -> Prepared:
        """Settle how the node runs; derive filters in the layout of its kernel."""
        prepared = self.prepared[node.about.name] = self._prepare(node)
        return prepared

    def _prepare(self, node: DeltaNode) -> Prepared:
        about = node.about
        if about.rule == "sparsify":
            return Prepared("sparsify")
        reason = self._why_whole(node)
        if reason and pooling.suits(node):
            return Prepared("pooling")
        if reason and windows.suits(node):
            return Prepared("windows", windows.describe(node, self.device))
        if reason and norms.suits(node):
            return Prepared("norm", norms.describe(node))
        if reason:
            return Prepared("whole", reason=reason)
        if regions.suits(node):
            return Prepared("regions", regions.describe(node, self.device))
        try:
            return Prepared("pixels", pixels.describe(node, self.device))
        except pixels.Unfit as error:
            if about.operator is None or not about.operator.name.startswith("conv"):
                return Prepared("whole", reason=str(error))
        return Prepared("convolution", convolution.fold_filters(node, self.launcher, self.told))

    def _why_whole(self, node: DeltaNode) -> str:
        about = node.about
        if about.rule != "local":
            return about.reason or about.rule
        for edge in (*about.inputs, about.output):
            if edge.dtype != about.output.dtype or not edge.is_map:
                return f"{edge.name} is {edge.dtype} of shape {edge.shape}"
        activation = activation_of(node)
        if applied(activation) is None and activation and activation[0] != "prelu":
            return f"the kernels lack the activation {activation}"
        assert about.operator is not None
        if about.operator.name.startswith("conv"):
            return convolution.refusal(node) or ""
        return ""

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return lists of candidates, which nodes share, and memory for sums and new values."""
        prepared = self.prepared[node.about.name]
        phases = prepared.data.period if prepared.kind == "convolution" else (1, 1)
        self.counters[node.about.name] = 1 + (
            2 if prepared.kind == "windows" else phases[0] * phases[1])
        if node.about.aliases:
            self._plan_union(node)
        if node.about.aliases or self._too_many(node):
            return []
        if prepared.kind == "convolution":
            scratch = convolution.plan(node, prepared.data, self.launcher, self.tables)
        elif prepared.kind == "sparsify":
            scratch = sparsify.plan(node)
        elif prepared.kind == "pooling":
            scratch = pooling.plan(node)
        elif prepared.kind == "windows":
            scratch = windows.plan(node, prepared.data)
        elif prepared.kind == "norm":
            scratch = norms.plan(node)
        elif prepared.kind == "regions":
            scratch = []
        elif prepared.kind == "whole":
            scratch = whole.plan(node, self.tables)
        else:
            scratch = [list_scratch(node, self.tables, phases)]
        self.tables.producers.add(node.about.name)  # behind: a node does not read itself
        self.tables.markers.add(node.about.name)
        self.scratch[node.about.name] = [want.name for want in scratch]
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
        if weights.kind == "sparsify":
            return sparsify.CudaSparsify(node, self.config, buffers, context)
        if weights.kind in WITHOUT_LIST or (weights.kind == "whole" and vectors.suits(node)):
            counter = context.count(2 if weights.kind == "windows" else 1)
            tally.candidates = [counter]
            tally.candidates_are_scheduled = weights.kind in ("regions", "windows")
            if weights.kind == "whole":
                return whole.WholeStep(node, buffers, context, self.tables, counter)
            return CudaStep(self.launcher, self._bind_without_list(
                node, weights, buffers, context, counter), buffers)
        if weights.kind == "whole":
            step: Step = whole.WholeStep(node, buffers, context, self.tables)
        elif weights.kind == "pixels":
            launches = pixels.bind(node, weights.data, buffers, context, self.tables)
            step = CudaStep(self.launcher, launches, buffers)
        else:
            made, launches, dense = convolution.bind(
                node, weights.data, buffers, context, self.tables, self.config.dense_fallback)
            step = CudaStep(self.launcher, launches, buffers, dense)
        if weights.kind != "convolution":
            made = context.lists[list_name(node)]
        tally.candidates = list(range(made.counts, made.counts + made.phases))
        tally.candidates_are_scheduled = weights.kind != "whole"
        return step

    def _bind_without_list(self, node: DeltaNode, weights: Prepared, buffers: Buffers,
                           context: Context, counter: int) -> list[Launch]:
        if weights.kind == "pooling":
            return pooling.bind(node, buffers, context, counter)
        if weights.kind == "windows":
            return windows.bind(node, weights.data, buffers, context, counter)
        if weights.kind == "norm":
            return norms.bind(node, weights.data, buffers, context, counter)
        return regions.bind(node, weights.data, buffers, context, self.tables, counter)

    def bind_union(self, node: DeltaNode, buffers: Buffers) -> Step:
        """Return the step of a concatenation that was written in place."""
        context = self.context(buffers.state)
        tally = self._tally(node, context)
        tally.candidates = [tally.changed]
        return CudaStep(self.launcher, union(node, buffers, context), buffers)

    def runner(self, graph_module: GraphModule, nodes: list[DeltaNode], state: State) -> Runner:
        """Return what runs a stream's frames, once all of its steps are bound."""
        return Runner(graph_module, nodes, state, self.context(state), self.config.graphs,
                      self.scratch)

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
        return len(node.about.inputs) > MOST_SOURCES and not node.about.aliases


def _edge_refusal(edge: EdgeSpec) -> str | None:
    if edge.shape is None:
        return "its value is not a tensor"
    if edge.dtype not in NUMBERS:
        return f"{edge.name} is {edge.dtype}; the kernels compute {', '.join(map(str, NUMBERS))}"
    if 0 in edge.shape:
        return f"{edge.name} is empty"
    pixels = math.prod(edge.mask_shape)
    if max(pixels, math.prod(edge.shape) // pixels) > LARGEST_INDEX:
        return f"{edge.name} has more pixels, or numbers in one, than 32 bits count"
    if edge.mask_shape[0] > MOST_LANES:
        return f"{edge.name} has more than {MOST_LANES} lanes"
    return None
