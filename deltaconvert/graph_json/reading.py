"""Records as a graph: what a file holds is looked up, never run."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import fx

from deltaconvert.errors import CheckpointError, DamagedError, UnsafeError, VersionError
from deltaconvert.graph_json.allowed import functions, methods, refusal
from deltaconvert.graph_json.arguments import decode, is_name, plain_name
from deltaconvert.graph_json.writing import TOLD, Record
from deltaconvert.operators import registry


def decode_graph(records: list[Record], weights: Iterable[str]) -> fx.Graph:
    """Build the graph that records describe; nothing of it is run.

    Args:
        records: as `encode_graph` gives them, or anything that was found in a file.
        weights: the names of the tensors that nodes may read.

    Raises:
        CheckpointError: naming the node and why it is refused. Records that have not even the
            form of records raise whatever Python raises.
    """
    graph, nodes, known = fx.Graph(), dict[str, fx.Node](), frozenset(weights)
    *body, last = records
    for record in body:
        name = record["name"]
        if name in nodes:
            raise DamagedError(f"there are two nodes {name!r:.80}.")
        try:
            node = _decode_record(graph, plain_name(name), record, nodes, known)
        except CheckpointError as error:
            raise type(error)(f"the node {name!r:.80} was refused: {error}") from None
        if node.name != name:
            raise DamagedError(f"{name!r} is a name that Python uses itself.")
        node.meta.update({key: str(record.get(key, "")) for key in ("path", "source")})
        node.meta.update({key: str(record[key]) for key in TOLD[2:] if key in record})
        nodes[name] = node
    if last["op"] != "output":
        raise DamagedError("its graph has no output.")
    results = decode(last["args"][0], nodes)
    if not isinstance(results, list):
        raise DamagedError("its graph does not return a list.")
    graph.output(results)
    graph.lint()
    graph.python_code("self")  # raises where FX cannot write a call, which says what is wrong
    return graph


def _decode_record(graph: fx.Graph, name: str, record: Record, nodes: Mapping[str, fx.Node],
                   weights: frozenset[str]) -> fx.Node:
    op, target = record["op"], record["target"]
    if op == "input":
        inputs = [n.target for n in nodes.values() if n.op == "placeholder"]
        if not is_name(target, any_letters=True) or target in ["self", *inputs]:
            raise DamagedError(f"an input cannot be called {target!r:.80}.")
        return graph.create_node("placeholder", target, name=name)
    if op == "weight":
        if target not in weights or any(keyword.iskeyword(part) for part in target.split(".")):
            raise DamagedError(f"there is no tensor {target!r:.80} in the file.")
        return graph.create_node("get_attr", target, name=name)
    found = _find(op, target)
    args = tuple(decode(a, nodes) for a in record["args"])
    kwargs = {plain_name(key): decode(a, nodes) for key, a in record["kwargs"].items()}
    reason = refusal(op, target, args, kwargs)
    if reason:
        raise UnsafeError(f"{reason}.")
    fx_op = "call_method" if op == "method" else "call_function"
    return graph.create_node(fx_op, found, args, kwargs, name=name)


def _find(op: str, target: str) -> Callable[..., Any] | str:
    """Look up what a record calls, in tables alone."""
    if op == "operator":
        operator_found = registry.named(target)
        if operator_found is not None:
            return operator_found.function
        raise VersionError(f"this version of deltaconvert has no operator {target!r:.80}.")
    if op == "function" and target in functions():
        return functions()[target]
    if op == "method" and target in methods():
        return target
    raise UnsafeError(f"the {op!s:.20} {target!r:.80} is not among the pure tensor functions that "
                      "a file may name.")
