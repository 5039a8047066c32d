"""Join whole: what runs whole one after the other runs as one node.

Before: ``t = reshape(x)``, ``u = permute(t)``, ``v = linear(u, ...)``; nothing else reads t or u.
After: the same calls; ``meta["joined"]`` of v lists t, u and v, and ``meta["elsewhere"]`` of t
and u is set, so that `lower` makes one delta node of them.

Between nodes that run whole a value is compared and stored for nobody: all of the next one runs
when anything has changed. A node joins its readers where all of them are one node already, so that
only the last one's value leaves; a view joins each of its readers, and so does what cuts a tensor
up, of whose parts not every backend has a place for all. Vectors stay nodes: those for which
backends have loops, and gates, whose thresholds hold back what would touch every pixel: what is
little to that on which it is brought to bear, whatever its size. (Tokens of a small map are few
numbers and no gates.) So does what depends on fewer inputs of the model than its readers do: it may
rest while they run. Operators that are not known join their like only, so that reports tell them
apart. What is done to volumes (N x C x T x H x W) between these is their like, gates included: of a
network for clips all runs when anything changes, and each value kept on the way is as large as a
convolution's.
"""

from __future__ import annotations

from torch import Tensor, fx
from torch.fx import GraphModule

from deltaconvert.operators.permute import permute
from deltaconvert.operators.reshape import reshape
from deltaconvert.passes.partition import edges
from deltaconvert.passes.result import PassResult
from deltaconvert.passes.store_as import floating_dtype

VIEWS = (reshape, permute)
CUTS = ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem")
GATED = 8  # how many times as many numbers as a gate has what it is a gate of, or more


def join_whole(graph_module: GraphModule, lanes: int) -> PassResult:
    """Annotate the graph; ``lanes`` is the batch size."""
    graph, result = graph_module.graph, PassResult("join_whole")
    depends, volumes = _inputs_behind(graph), _volumes(graph_module)
    # Of the nodes that run whole: the last ones that each runs with.
    last: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in reversed(graph.nodes):
        if node.meta.get("rule") not in ("global", "unknown"):
            continue
        into = frozenset[fx.Node]().union(*(last.get(reader, ()) for reader in node.users))
        joins = (all(reader in last for reader in node.users)
                 and (len(into) == 1 or (into and (node.target in VIEWS or _cuts(node))))
                 and all(depends[node] == depends[other] and _are_alike(node, other, volumes)
                         for other in into)
                 and (into | {node} <= volumes or not _is_gate(node, lanes)))
        last[node] = into if joins else frozenset([node])
    for node in graph.nodes:
        for other in last.get(node, ()):
            other.meta.setdefault("joined", []).append(node)
    for node in last:
        joined = node.meta.get("joined", [])
        if not joined:
            node.meta["elsewhere"] = True
        elif len(joined) > 1:
            result.changed.append(f"{node.name}: {len(joined)} nodes")
    return result


def is_unknown(node: fx.Node) -> bool:
    """Whether this computes what is not known; to cut a tensor up is not to compute."""
    return bool(node.meta["rule"] == "unknown") and not _cuts(node)


def _are_alike(node: fx.Node, other: fx.Node, volumes: set[fx.Node]) -> bool:
    return (node in volumes or is_unknown(node)) == (other in volumes or is_unknown(other))


def _volumes(graph_module: GraphModule) -> set[fx.Node]:
    """Return what is computed whole of maps over time, from the first operator on not known.

    In a model's own precision only: what is not known computes in that, whatever is kept.
    """
    found: set[fx.Node] = set()
    own = floating_dtype(list(graph_module.parameters()))
    for node in graph_module.graph.nodes:
        value, rule = node.meta.get("value"), node.meta.get("rule")
        if (rule in ("global", "unknown") and isinstance(value, Tensor) and value.dim() == 5
                and value.dtype == own
                and (is_unknown(node) or any(e in found for e in edges(node)))):
            found.add(node)
    return found


def _cuts(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in CUTS


def _inputs_behind(graph: fx.Graph) -> dict[fx.Node, frozenset[fx.Node]]:
    """Return which inputs of the model each node depends on."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        found[node] = (frozenset([node]) if node.op == "placeholder" else
                       frozenset().union(*(found[n] for n in node.all_input_nodes)))
    return found


def _is_gate(node: fx.Node, lanes: int) -> bool:
    """Whether this is a row or a pixel of each lane, or little to what it is brought to bear on.

    That is another input of a reader, and what the reader makes of it, as large. The values of an
    attention are little to its scores, but so is its result.
    """
    value = node.meta["value"]
    if not isinstance(value, Tensor):
        return False
    if value.dim() < 2 or (value.dim() in (2, 4) and value.numel() == lanes * value.shape[1]):
        return True
    most = value.numel() * GATED
    return any(
        _numbers(reader) >= most and any(_numbers(other) >= most for other in edges(reader))
        for reader in node.users)


def _numbers(node: fx.Node) -> int:
    value = node.meta["value"]
    return value.numel() if isinstance(value, Tensor) else 0


def joined(graph_module: GraphModule) -> list[fx.Node]:
    """Return the nodes that run as a part of others only."""
    return [node for node in graph_module.graph.nodes if "elsewhere" in node.meta]


def inputs_of(members: list[fx.Node]) -> list[fx.Node]:
    """Return the changing nodes that some nodes read together, but for each other."""
    return list(dict.fromkeys(e for node in members for e in edges(node) if e not in members))
