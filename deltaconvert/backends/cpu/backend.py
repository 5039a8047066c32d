"""The backend: which nodes it runs, and by what."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.fx import GraphModule

from deltaconvert.backends.base import Backend, Buffers, Scratch, Step
from deltaconvert.backends.cpu import sparsify
from deltaconvert.backends.cpu.convolutions import convolution, fallback, linear
from deltaconvert.backends.cpu.convolutions.filters import NARROWEST_GROUP, fold, fold_matrix
from deltaconvert.backends.cpu.frames.engine import Engine, engine_of
from deltaconvert.backends.cpu.frames.lists import list_scratch
from deltaconvert.backends.cpu.frames.workers import Workers
from deltaconvert.backends.cpu.maps.storage import STORED
from deltaconvert.backends.cpu.operators import (
    elementwise,
    moves,
    norm,
    pixelwise,
    pooling,
    resizing,
    selection,
    shuffle,
    softmax,
    union,
    whole,
)
from deltaconvert.backends.cpu.runner import Runner
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode, EdgeSpec
from deltaconvert.state import FrameRunner, State


class Kind(Protocol):
    """A module of this package that runs one kind of node."""

    def refusal(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run elsewhere."""

    def plan(self, node: DeltaNode, workers: int) -> list[Scratch]:
        """Return the working memory."""

    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers, engine: Engine) -> Step:
        """Return the step."""


# By the operator's name; whatever else has weights for its taps, or a pixelwise function, runs
# by these.
_KINDS: dict[str, Kind] = {
    "conv2d": convolution,
    "conv_transpose2d": convolution,
    "max_pool2d": pooling,
    "avg_pool2d": pooling,
    "adaptive_max_pool2d": pooling,
    "adaptive_avg_pool2d": pooling,
    "pixel_shuffle": shuffle,
    "softmax": softmax,
}
# Those that read one pixel as it is.
_SELECTIONS = ("select", "resize_nearest", "pad", "pad_zero")
# Those that read whole lanes.
_WHOLE: dict[str, Kind] = {
    "adaptive_avg_pool2d": whole,
    "mean": whole,
    "flatten": whole,
    "reshape": whole,
    "linear": linear,
}


class CpuBackend(Backend):
    """See the package. An instance belongs to one program and may serve many streams."""

    squares = NARROWEST_GROUP - 1  # wider convolutions go by tiles

    name = "cpu"

    def __init__(self, config: Config) -> None:
        """Keep the configuration; threads start with the first frame that needs them."""
        self.config = config
        self.workers = Workers(config.threads or torch.get_num_threads())

    def supports(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run by ``reference``."""
        about = node.about
        if about.rule == "sparsify":
            return _edge_refusal(about.output)
        if about.aliases:
            return "nothing to compute: its value is made of its inputs' buffers"
        reason = self._refusal(node)
        if reason and about.rule != "local":
            return f"runs whole, by its own function ({about.reason or about.rule})"
        return reason

    def _refusal(self, node: DeltaNode) -> str | None:
        for edge in (*node.about.inputs, node.about.output):
            if reason := _edge_refusal(edge, node.about.rule == "local"):
                return reason
            if edge.dtype != node.about.output.dtype:
                return f"{edge.name} is {edge.dtype}, the output {node.about.output.dtype}"
        kind = _kind(node)
        return kind.refusal(node) if kind else "the cpu backend has no loop for it"

    def fold_filters(self, node: DeltaNode) -> Any:
        """Return the `Filters` of a product; nothing for other nodes."""
        kind = _kind(node)
        return fold(node) if kind is convolution else fold_matrix(node) if kind is linear else None

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return lists of candidates, which nodes share, and memory for chunks of rows."""
        if node.about.rule == "sparsify":
            return sparsify.plan(node)
        if node.about.aliases:
            return list_scratch(node)
        kind = _kind(node)
        assert kind is not None
        scratch = kind.plan(node, self.workers.threads)
        more = fallback.plan(node, self.workers.threads) if self._falls_back(node) else []
        return scratch + more

    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers) -> Step:
        """Return the step of a node."""
        engine = engine_of(buffers.state, self.workers)
        if node.about.rule == "sparsify":
            return sparsify.CpuSparsify(node, self.config, buffers, engine)
        kind = fallback if self._falls_back(node) else _kind(node)
        assert kind is not None
        return kind.bind(node, weights, buffers, engine)

    def _falls_back(self, node: DeltaNode) -> bool:
        return (self.config.dense_fallback and node.about.rule == "local"
                and fallback.is_offered(node))

    def bind_union(self, node: DeltaNode, buffers: Buffers) -> Step:
        """Return the step of a concatenation written in place."""
        return union.bind(node, buffers, engine_of(buffers.state, self.workers))

    def runner(self, graph_module: GraphModule, nodes: list[DeltaNode],
               state: State) -> FrameRunner:
        """Return what runs a stream's frames; what was measured while it was bound is kept."""
        if any(map(self._falls_back, nodes)):
            fallback.save()
        return Runner(graph_module, nodes, state)


def create(config: Config) -> CpuBackend:
    """Make the backend for one program."""
    return CpuBackend(config)


def _kind(node: DeltaNode) -> Kind | None:
    operator = node.about.operator
    if node.about.rule != "local":
        return _whole(node)
    if operator is None:
        return None
    if operator.name in _KINDS:
        return _KINDS[operator.name]
    if operator.name in _SELECTIONS and selection.refusal(node) is None:
        return selection
    if operator.name in ("layer_norm2d", "rms_norm2d") and norm.refusal(node) is None:
        return norm
    if operator.weights:
        return resizing
    if operator.pixelwise:
        return pixelwise if elementwise.refusal(node) else elementwise
    return None


def _whole(node: DeltaNode) -> Kind | None:
    """Return what runs a node that is not local, or would say why it does not."""
    operator = node.about.operator
    kind: Kind | None = None
    if operator is not None:
        kind = elementwise if operator.is_activation else _WHOLE.get(operator.name)
    if node.about.rule == "global" and (kind is None or kind.refusal(node)) and (
            moves.refusal(node) is None):
        return moves
    return kind


def _edge_refusal(edge: EdgeSpec, local: bool = True) -> str | None:
    if local and not edge.is_map:
        return f"{edge.name} is not a map of {edge.lanes} lanes (its shape is {edge.shape})"
    if edge.dtype not in STORED:
        return f"{edge.name} is {edge.dtype}; the cpu backend takes float32 and bfloat16"
    if edge.shape is not None and 0 in edge.shape:
        return f"{edge.name} is empty"
    return None
