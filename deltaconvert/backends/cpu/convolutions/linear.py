"""Linear layers of vectors: the convolution of a map that is one pixel, by the same product."""

from __future__ import annotations

from typing import Any

from deltaconvert.backends.base import Buffers, Scratch
from deltaconvert.backends.cpu.convolutions import convolution
from deltaconvert.backends.cpu.convolutions.filters import weight_refusal
from deltaconvert.backends.cpu.convolutions.kernel import PANEL
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.lists import list_scratch, whole_refusal
from deltaconvert.backends.cpu.frames.steps import CompiledStep, row_scratch
from deltaconvert.nodes import DeltaNode


def refusal(node: DeltaNode) -> str | None:
    """Return why this linear layer must run elsewhere."""
    return whole_refusal(node) or weight_refusal(node)


def plan(node: DeltaNode, workers: int) -> list[Scratch]:
    """Return the list of lanes, and the addresses and results of rows."""
    assert node.about.output.shape is not None
    channels = node.about.output.shape[1]
    rows = convolution.product_rows(channels)
    return [*list_scratch(node), row_scratch("new", rows, channels + PANEL, workers),
            row_scratch("addresses", workers * rows, 2, workers), Scratch("cpu.copies", 0)]


def bind(node: DeltaNode, filters: Any, buffers: Buffers, engine: Engine) -> CompiledStep:
    """Return the step of a linear layer."""
    return convolution.bind(node, filters, buffers, engine)
