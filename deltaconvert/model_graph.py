"""What was traced: a graph, the tree of its outputs, and the frames that it is right for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class ModelGraph:
    """A model's graph in canonical operators, free of shapes or for some alone.

    Args:
        graph: of the modules of a root.
        out_spec: the tree that the graph's flat outputs belong into.
        traced_for: the only shapes of frames that it is right for, if any; -1 in them is any
            size.
        is_guess: it is for frames that nobody has given yet.
    """

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    traced_for: list[tuple[int, ...]] | None = None
    is_guess: bool = False

    @classmethod
    def of(cls, traced: GraphModule, is_guess: bool = False) -> ModelGraph:
        """Take the graph of what was traced."""
        return cls(traced.graph, traced.meta["out_spec"], traced.meta["traced_for"], is_guess)

    def takes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it is right for frames of these shapes."""
        def fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
            return len(found) == len(wanted) and all(map(lambda f, w: w in (-1, f), found, wanted))
        return self.traced_for is None or (len(shapes) == len(self.traced_for) and all(
            map(fits, shapes, self.traced_for)))
