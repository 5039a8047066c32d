"""What a backend is, and which one is taken."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch.fx import GraphModule

from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError, missing_package
from deltaconvert.nodes import DeltaNode
from deltaconvert.state import Edge, FrameRunner, State


class Work(NamedTuple):
    """What a step did in a frame, over all lanes.

    Args:
        candidates: output pixels whose footprint holds a changed pixel.
        scheduled: multiply-adds computed for them, as the operator's definition counts them (by
            Winograd's tiles it takes fewer).
    """

    candidates: int
    scheduled: int


# A step that counts its work on its device, and has it read only when asked, returns nothing.
Step = Callable[..., Work | None]


@dataclass(frozen=True)
class Scratch:
    """Working memory that a node wants for the length of its step.

    Scratch of the same name is shared by all nodes of a stream, as large as the largest
    wish (a node that must keep something between frames names it after itself).
    """

    name: str
    nbytes: int


@dataclass(frozen=True)
class Buffers:
    """What a step is bound to: its edges, the state they live in, and its scratch.

    ``scratch[name]`` is a flat uint8 tensor, 64-byte aligned, of at least the bytes asked.
    """

    inputs: tuple[Edge, ...]
    output: Edge
    state: State
    scratch: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Backend(ABC):
    """One way to run delta nodes. An instance belongs to one specialised program.

    Attributes:
        name: in the configuration.
        unfused: activations that it computes by themselves only.
        squares: channels that a square's pixels are put into at most, where a convolution behind
            that is computed on the map itself, see `fold_squares`.
    """

    name: str
    unfused: frozenset[str] = frozenset()
    squares: int = 0

    @abstractmethod
    def supports(self, node: DeltaNode) -> str | None:
        """Return nothing, or the reason why this node must run by ``reference``."""

    @abstractmethod
    def fold_filters(self, node: DeltaNode) -> Any:
        """Return the node's weights in this backend's layout; shared by streams."""

    @abstractmethod
    def plan(self, node: DeltaNode) -> list[Scratch]:
        """Return the working memory that the node wants beside its edge."""

    @abstractmethod
    def bind(self, node: DeltaNode, weights: Any, buffers: Buffers) -> Step:
        """Return the step to call once a frame.

        It reads the input edges, applies the rule, writes the output edge's value where it
        propagates a change, its mask, and its ``counts``. A `SparsifyNode`'s step is a
        `SparsifyStep`.
        """

    def bind_union(self, node: DeltaNode, buffers: Buffers) -> Step:
        """Return the step of a concatenation written in place, which has masks to unite only."""
        from deltaconvert.backends.rule import unite_masks  # builds on this file

        return lambda: unite_masks(buffers)

    def runner(self, graph_module: GraphModule, nodes: list[DeltaNode],
               state: State) -> FrameRunner | None:
        """Return what runs the frames of a stream whose steps are all bound, if not the graph."""
        return None


class SparsifyStep(Protocol):
    """The step of a door in, in two parts, so that a refused frame changes nothing."""

    def examine(self, frame: torch.Tensor) -> None:
        """Raise `NotFiniteError` if the frame holds NaN or infinity; change no value."""

    def __call__(self, frame: torch.Tensor) -> Work | None:
        """Apply the rule to the frame that was examined last."""


def create(name: str, config: Config, device: torch.device) -> Backend:
    """Make a backend by name, one of `BACKENDS`; `choose` says what ``auto`` is.

    Raises:
        UnsupportedError: ``cuda`` cannot run on the device, or a package is missing.
    """
    if name == "auto":
        name, reason = choose(device)
        if reason:
            warnings.warn(f"backend='auto' is {name}, which is not made to be fast: {reason}",
                          stacklevel=2)
    if name == "cpu" and device.type != "cpu":
        raise UnsupportedError(f"backend='cpu' cannot run: the frames are on {device}; move model "
                               "and frames to the CPU, or leave the choice to backend='auto'.")
    try:
        module = _module(name)
    except ModuleNotFoundError as error:
        if not (missing := missing_package(error)):
            raise
        raise UnsupportedError(f"backend {name!r} needs {missing}; or say backend='reference', "
                               "which needs PyTorch alone.") from error
    backend: Backend = module.create(config, device) if name == "cuda" else module.create(config)
    return backend


def choose(device: torch.device) -> tuple[str, str]:
    """Say which backend ``auto`` is on a device, and why where that is not the fast one.

    ``cpu`` on a CPU; ``cuda`` on a GPU where its kernels run; ``reference`` elsewhere.
    """
    if device.type == "cpu":
        return "cpu", ""
    reason = _module("cuda").unavailable(device)
    return ("reference", reason) if reason else ("cuda", "")


def _module(name: str) -> Any:
    return importlib.import_module(f"deltaconvert.backends.{name}")
