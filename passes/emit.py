"""Write a `Call` into a graph, with the calls that are nested in its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from deltaconvert.operators.registry import Call

# What passes know of a function that was kept whole, not of what is written beside it.
OF_A_FUNCTION = ("whole", "writes", "returns", "layouts")


def emit(graph: fx.Graph, before: fx.Node, argument: Any, meta: Mapping[str, Any],
         made: list[fx.Node]) -> Any:
    """Return the node that stands for a call, made in front of ``before``.

    Args:
        graph: is written into.
        before: the nodes go in front of it.
        argument: a call, or a tuple of them; anything else is returned as it is.
        meta: a copy becomes each node's metadata.
        made: gets the nodes, in order of execution.
    """
    if type(argument) is tuple:
        return tuple(emit(graph, before, part, meta, made) for part in argument)
    if not isinstance(argument, Call):
        return argument
    args = tuple(emit(graph, before, a, meta, made) for a in argument.args)
    params = {name: emit(graph, before, value, meta, made)
              for name, value in argument.params.items()}
    with graph.inserting_before(before):
        node = graph.call_function(argument.function, args, params)
    node.meta.update((key, value) for key, value in meta.items() if key not in OF_A_FUNCTION)
    made.append(node)
    return node
