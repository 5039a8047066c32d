"""The mean over a whole map in bfloat16, for gates and classifiers.

A global node: any change of its input makes it run whole. In float32 PyTorch's own is fast; in
bfloat16 it takes twenty times as long.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loop: Numba infers its types)

from __future__ import annotations

import numpy as np
import torch

from deltaconvert.backends.base import Buffers, Scratch, Work
from deltaconvert.backends.cpu.finish import Finish, nothing
from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.maps import flat_map
from deltaconvert.backends.cpu.storage import load
from deltaconvert.backends.cpu.workers import Workers
from deltaconvert.backends.rule import run_needed
from deltaconvert.nodes import DeltaNode

_ZERO = np.float32(0)


def takes(node: DeltaNode) -> bool:
    """Whether a global node is such a mean."""
    about = node.about
    if about.operator is None or about.output.dtype != torch.bfloat16:
        return False
    if about.operator.name == "mean":
        return about.params["keepdim"] and {d % 4 for d in about.params["dim"]} == {2, 3}
    return about.operator.name == "adaptive_avg_pool2d"


def refusal(node: DeltaNode) -> str | None:
    """Return nothing: what `takes` says is all."""
    return None


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return nothing: a row a lane is kept by the step."""
    return []


def bind(node: DeltaNode, weights: None, buffers: Buffers, workers: Workers) -> GlobalMean:
    """Return the step."""
    return GlobalMean(node, buffers)


class GlobalMean:
    """The step of a mean over the whole map."""

    def __init__(self, node: DeltaNode, buffers: Buffers) -> None:
        """Resolve buffers; a lane is the one pixel of its output."""
        self.buffers, self.finish = buffers, Finish(node, buffers, 1)
        self.source = flat_map(buffers.inputs[0].value)
        self.sums = np.zeros((self.source.lanes, self.source.channels), np.float32)
        self.pixels = np.arange(self.source.lanes, dtype=np.int32)
        self.multiply_adds = self.source.lanes * node.dense_multiply_adds

    def __call__(self) -> Work:
        """Apply the rule to every lane, where an input changed."""
        if not run_needed(self.buffers):
            nothing(self.finish)
            return Work(0, 0)
        mean_of_lanes(self.source.data, self.source.step, self.source.pixels, self.sums)
        self.finish.begin()
        self.finish.rows(0, self.sums, self.pixels)
        self.finish.end()
        return Work(len(self.pixels), self.multiply_adds)


@loop
def mean_of_lanes(data, step, plane, means):
    """Write the mean of each channel of each lane."""
    channels = means.shape[1]
    for lane in range(means.shape[0]):
        row = means[lane]
        row[:] = _ZERO
        for pixel in range(lane * plane, (lane + 1) * plane):
            source = data[pixel * step:pixel * step + channels]
            for c in range(channels):
                row[c] += load(source, c)
        for c in range(channels):
            row[c] /= np.float32(plane)
