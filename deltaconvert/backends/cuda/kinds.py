"""What a kind of nodes is to the backend, and what several kinds need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from deltaconvert.backends.base import Buffers, Scratch, Step
from deltaconvert.backends.cuda.candidates import Tables
from deltaconvert.backends.cuda.context import Context, activation_of
from deltaconvert.backends.cuda.functions import applied
from deltaconvert.config import Config
from deltaconvert.cuda.launcher import Launch, Launcher, launch_all
from deltaconvert.nodes import DeltaNode


@dataclass
class Program:
    """What all nodes and streams of a program share.

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

    def __post_init__(self) -> None:
        """Start with no node planned."""
        self.tables = Tables(self.device)
        self.break_even: float | None = None  # once a stream has measured it; see `break_even.py`


class Bound(NamedTuple):
    """A node's step.

    Args:
        step: to call once a frame.
        candidates, scheduled: see `Tally`.
    """

    step: Step
    candidates: list[int]
    scheduled: bool = True


class Unfit(Exception):
    """A node is another kind's."""


class Kind(Protocol):
    """A module of this package that runs one kind of nodes."""

    def prepare(self, node: DeltaNode, program: Program) -> Any:
        """Return what the node needs on the device, once a program.

        Raises:
            Unfit: this kind does not run it.
        """

    def plan(self, node: DeltaNode, data: Any, program: Program) -> tuple[list[Scratch], int]:
        """Return the working memory, and how many counters of candidates there will be."""

    def bind(self, node: DeltaNode, data: Any, buffers: Buffers, context: Context,
             program: Program) -> Bound:
        """Return the step of a stream."""


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
    dense: Step | None = None

    def __call__(self) -> None:
        """Launch; the work is counted on the device."""
        launch_all(self.launcher, self.launches)


def at_candidates(node: DeltaNode) -> bool:
    """Whether a node is local, of maps in one dtype, with an activation that is compiled in."""
    about = node.about
    if about.rule != "local" or any(edge.dtype != about.output.dtype or not edge.is_map
                                    for edge in (*about.inputs, about.output)):
        return False
    activation = activation_of(node)
    return not activation or activation[0] == "prelu" or applied(activation) is not None
