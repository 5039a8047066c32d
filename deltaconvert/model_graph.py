"""What was traced: a graph, the tree of its outputs, and the frames that it is right for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from deltaconvert.errors import FrameError, FrameShapeError, FrameTypeError
from deltaconvert.passes.calls import Call
from deltaconvert.passes.views import is_repeated


@dataclass(frozen=True)
class ModelGraph:
    """A model's graph in canonical operators, free of shapes or for some alone.

    Args:
        graph: of the modules of a root.
        out_spec: the tree that the graph's flat outputs belong into.
        traced_for: the only shapes of frames that it is right for, if any; -1 in them is any
            size. Code that goes by shapes may go by the next two as well.
        dtypes: then those of the frames, where they are known.
        autocast: then what autocast has calls computed in; ``...`` is anything.
        by_numbers: it goes by numbers that were in buffers.
        is_guess: it is for frames that nobody has given yet, or for weights that were.
        call: how it is given its tensors, where they are not one an input.
    """

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    traced_for: list[tuple[int, ...]] | None = None
    dtypes: list[torch.dtype] | None = None
    autocast: Any = ...
    by_numbers: bool = False
    is_guess: bool = False
    call: Call | None = None

    @classmethod
    def of(cls, traced: GraphModule, is_guess: bool = False) -> ModelGraph:
        """Take the graph of what was traced."""
        meta = traced.meta
        return cls(traced.graph, meta["out_spec"], meta["traced_for"], meta["dtypes"],
                   meta.get("autocast", ...), meta.get("by_numbers", False), is_guess,
                   meta.get("call"))

    @cached_property
    def input_names(self) -> list[str]:
        """The names of its tensors, in order."""
        return [node.name for node in self.graph.nodes if node.op == "placeholder"]

    @cached_property
    def by_layout(self) -> bool:
        """Whether what it computes may go by how frames lie in memory: by what is a view then."""
        return any(is_repeated(node) for node in self.graph.nodes)

    def takes(self, frames: Sequence[Tensor]) -> bool:
        """Whether it is right for such frames."""
        if self.is_guess or getattr(frames, "call", None) != self.call:
            return False
        if self.traced_for is None:
            return True
        return (len(frames) == len(self.traced_for)
                and all(map(_fits, (f.shape for f in frames), self.traced_for))
                and self.dtypes in (None, [f.dtype for f in frames])
                and self.autocast in (..., autocast_of(frames)))

    def refusal(self, frames: Sequence[Tensor]) -> FrameError:
        """Say which frames it is for, to whoever gave others."""
        shapes, dtypes = [tuple(f.shape) for f in frames], [f.dtype for f in frames]
        kind, made, given = (FrameTypeError, self.dtypes, dtypes) if all(
            map(_fits, shapes, self.traced_for or ())) else (
            FrameShapeError, self.traced_for, shapes)
        return kind("the model's code branches on shapes, so it was converted for frames of "
                    f"{made}; these are {given}. Convert it again with example_inputs like these.")


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def autocast_of(frames: Sequence[Tensor]) -> torch.dtype | None:
    """Return the dtype that autocast has calls computed in around a frame, if it is on."""
    kind = frames[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
