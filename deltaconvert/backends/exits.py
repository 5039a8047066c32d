"""What a lowered graph returns, for runners that do not run the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.nodes import DensifyNode, copy_value
from deltaconvert.state import State


class Exit(NamedTuple):
    """One leaf of the output.

    Args:
        door: the door out; nothing for a constant.
        constant: else.
    """

    door: DensifyNode | None
    constant: Any

    def take(self, state: State, copy: Callable[[Any, torch.dtype | None], Any] = copy_value
             ) -> Any:
        """Return the leaf as a copy, made by ``copy``."""
        if self.door is None:
            return copy_value(self.constant)
        return copy(state.edges[self.door.about.inputs[0].name].value, self.door.dtype)


def exits(graph_module: GraphModule) -> list[Exit]:
    """Return the leaves of a graph's output, in order."""
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    return [_exit(graph_module, leaf) for leaf in output.args[0]]


def _exit(graph_module: GraphModule, leaf: Any) -> Exit:
    if not isinstance(leaf, fx.Node):
        return Exit(None, leaf)
    if leaf.op == "call_module":
        door = graph_module.get_submodule(str(leaf.target))
        assert isinstance(door, DensifyNode)
        return Exit(door, None)
    (constant,) = leaf.all_input_nodes
    value = getattr(graph_module, str(constant.target))
    assert isinstance(value, Tensor)
    return Exit(None, value)
