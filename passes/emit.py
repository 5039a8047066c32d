"""Write a `Call` into a graph, with the calls that are nested in its arguments."""

from __future__ import annotations

from typing import Any

from torch import fx

from deltaconvert.operators.registry import Call


def emit(graph: fx.Graph, before: fx.Node, argument: Any) -> Any:
    """Return the node that stands for a call, made in front of ``before`` with its metadata.

    Anything else is returned as it is.
    """
    if not isinstance(argument, Call):
        return argument
    args = tuple(emit(graph, before, a) for a in argument.args)
    with graph.inserting_before(before):
        node = graph.call_function(argument.function, args, argument.params)
    node.meta.update(before.meta)
    return node
