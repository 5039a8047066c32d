"""Find convolutions: a formula that multiplies the channels of a map by a matrix is one of 1x1.

Before: ``einsum(w, x, "oi,...ihw->...ohw")``.
After: ``conv2d(x, as_filter(w))``.

Behind `infer`, which tells how many dimensions an ellipsis stands for, and which operand is the
same for all frames.
"""

from __future__ import annotations

from torch.fx import GraphModule

from deltaconvert.operators import registry
from deltaconvert.operators.einsum import as_convolution, einsum
from deltaconvert.passes.annotate import write
from deltaconvert.passes.partition import shapes_of
from deltaconvert.passes.result import PassResult


def find_convolutions(graph_module: GraphModule) -> PassResult:
    """Rewrite the graph in place."""
    result, operator = PassResult("find_convolutions"), registry.find(einsum)
    assert operator is not None
    for node in graph_module.graph.find_nodes(op="call_function", target=einsum):
        if node.meta["constant"] or not node.meta["value"].is_floating_point():
            continue
        meaning = as_convolution(shapes_of(node, operator), *node.args)
        if meaning is None:
            continue
        name, new = node.name, write(graph_module, meaning, node, node)
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)
        new.name = name
        result.changed.append(f"{name}: conv2d")
    if result.changed:
        graph_module.recompile()
    return result
