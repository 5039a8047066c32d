"""The backend: which nodes it runs, and by what."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from deltaconvert.backends.base import Buffers, Scratch, Step
from deltaconvert.backends.cpu import (
    convolution,
    global_mean,
    pixelwise,
    pooling,
    shuffle,
    sparsify,
)
from deltaconvert.backends.cpu.filters import fold
from deltaconvert.backends.cpu.storage import STORED
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.config import Config
from deltaconvert.nodes import DeltaNode, EdgeSpec


class Kind(Protocol):
    """A module of this package that runs one kind of node."""

    def refusal(self, node: DeltaNode) -> str | None:
        """Return nothing, or why this node must run elsewhere."""

    def plan(self, node: DeltaNode, workers: int) -> list[Scratch]:
        """Return the working memory."""

    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers, workers: Workers) -> Step:
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
}


class CpuBackend:
    """See the package. An instance belongs to one program and may serve many streams."""

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
        kind = _kind(node)
        if about.rule != "local" and kind is not global_mean:
            return f"runs whole, by its own function ({about.reason or about.rule})"
        for edge in (*about.inputs, about.output):
            if reason := _edge_refusal(edge):
                return reason
            if edge.dtype != about.output.dtype:
                return f"{edge.name} is {edge.dtype}, the output {about.output.dtype}"
        return kind.refusal(node) if kind else "the cpu backend has no loop for it"

    def fold_filters(self, node: DeltaNode) -> Any:
        """Return a convolution's `Filters`; nothing for other nodes."""
        return fold(node) if _kind(node) is convolution else None

    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return lists of candidates, which nodes share, and memory for chunks of rows."""
        if node.about.rule == "sparsify":
            return sparsify.plan(node)
        kind = _kind(node)
        assert kind is not None
        return kind.plan(node, self.workers.threads)

    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers) -> Step:
        """Return the step of a node."""
        if node.about.rule == "sparsify":
            return sparsify.CpuSparsify(node, self.config, buffers, self.workers)
        kind = _kind(node)
        assert kind is not None
        return kind.bind(node, weights, buffers, self.workers)


def create(config: Config) -> CpuBackend:
    """Make the backend for one program."""
    return CpuBackend(config)


def _kind(node: DeltaNode) -> Kind | None:
    operator = node.about.operator
    if operator is None:
        return None
    if node.about.rule == "global":
        return global_mean if global_mean.takes(node) else None
    by_description = pooling if operator.weights else pixelwise if operator.pixelwise else None
    return _KINDS.get(operator.name) or by_description


def _edge_refusal(edge: EdgeSpec) -> str | None:
    if not edge.is_map:
        return f"{edge.name} is not a map of {edge.lanes} lanes (its shape is {edge.shape})"
    if edge.dtype not in STORED:
        return f"{edge.name} is {edge.dtype}; the cpu backend takes float32 and bfloat16"
    if edge.shape is not None and 0 in edge.shape:
        return f"{edge.name} is empty"
    return None
