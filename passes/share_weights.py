"""Share weights: derived weights that are equal to those of another program are the same tensors.

Before: a folded filter in the arguments of a node, made for this program.
After: the one that a program for frames of another size was given, if there is one.

The model's own parameters stay what they are: they are written to.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.fx import GraphModule

from deltaconvert.passes.annotate import attribute
from deltaconvert.passes.fold_filters import delta_nodes
from deltaconvert.sharing import equal_one


def share_weights(lowered: GraphModule, graph: fx.Graph, root: nn.Module) -> None:
    """Replace tensors in the arguments of nodes, in place.

    Args:
        lowered: delta nodes.
        graph: that they were made from.
        root: the model.
    """
    named = (attribute(root, str(n.target)) for n in graph.find_nodes(op="get_attr"))
    own = {_memory(t) for t in (*root.parameters(), *root.buffers(), *named)
           if isinstance(t, Tensor)}
    for node in delta_nodes(lowered):
        node.about.args = tuple(
            equal_one(a) if isinstance(a, Tensor) and _memory(a) not in own else a
            for a in node.about.args)


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
