"""Fold filters: weights into the layout that the backend's kernels read.

Before: ``[C_out, C_in / groups, kh, kw]``, as the state dict has them.
After: what `Backend.fold_filters` returns, channels last, made once for all programs
whose weights and layouts are equal. Also settles which backend runs each node: what the
chosen one cannot do runs by ``reference``.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from deltaconvert.backends.base import Backend
from deltaconvert.nodes import DeltaNode, DensifyNode


def fold_filters(graph_module: GraphModule, backend: Backend, fallback: Backend) -> dict[str, Any]:
    """Return the derived weights of every node, by name."""
    weights = {}
    for node in delta_nodes(graph_module):
        reason = backend.supports(node)
        node.backend = fallback.name if reason else backend.name
        node.fallback_reason = reason or ""
        weights[node.about.name] = (fallback if reason else backend).fold_filters(node)
    return weights


def delta_nodes(graph_module: GraphModule) -> list[DeltaNode]:
    """Return the nodes with a step, doors in included, in order of execution."""
    modules = dict(graph_module.named_children())
    called = (modules[str(n.target)] for n in graph_module.graph.nodes if n.op == "call_module")
    return [m for m in called if isinstance(m, DeltaNode) and not isinstance(m, DensifyNode)]
