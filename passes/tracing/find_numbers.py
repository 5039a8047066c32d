"""Find numbers: which calls of a graph hold numbers of a frame, not what follows from shapes."""

from __future__ import annotations

from torch import fx, nn

from deltaconvert.passes.functionalize import is_shape_read, written_into

CONVERSIONS = frozenset({"to", "type_as", "type", "float", "double", "half", "bfloat16"})


def with_numbers(model: nn.Module, graph: fx.Graph, changed: list[str]) -> set[fx.Node]:
    """Return the nodes that hold numbers of a frame, or of what changes from frame to frame.

    Not those of what follows from shapes alone, nor an attribute that was only converted.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_source = node.op == "placeholder" or (node.op == "get_attr" and node.target in changed)
        if is_source or not found.isdisjoint(_read(node)):
            found.add(node)
            if receiver := written_into(model, node):
                found.add(receiver)
    return found


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of which a call may read numbers."""
    inputs = node.all_input_nodes
    name = getattr(node.target, "__name__", str(node.target))
    if is_shape_read(node) or (name in CONVERSIONS and all(n.op == "get_attr" for n in inputs[:1])):
        return []
    if name.startswith("new_") or name.endswith("_like"):  # `torch.full_like(x, x.mean())`
        inputs = []
        fx.map_arg((node.args[1:], node.kwargs), inputs.append)
    return inputs
