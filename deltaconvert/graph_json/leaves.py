"""Modules of ``torch.nn`` as the one function that each calls."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from deltaconvert.errors import TraceError
from deltaconvert.graph_json.arguments import Unwritable
from deltaconvert.passes.trace import trace

PREFIX = "norm."  # of the weights' names in a `_Batched`
RANKS = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}


class _Batched(nn.Module):
    """An instance norm without its look at the input's rank, which tracing cannot follow."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.rank = norm, RANKS[type(norm)]  # type: ignore[index]

    def forward(self, x: Any) -> Any:
        # Given an input without a batch, the module adds one; the function cannot know.
        torch._assert(x.dim() == self.rank, f"an instance norm takes {self.rank} dimensions")
        return self.norm._apply_instance_norm(x)  # type: ignore[operator]


def as_function(module: nn.Module) -> tuple[fx.Graph, fx.Node]:
    """Find out by tracing which function a module calls.

    Returns:
        The graph of its weights and the call, and the call.

    Raises:
        Unwritable: where that is not one call: a file would hold several nodes, each with
            a threshold of its own, in the place of one.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unwritable("it has forward hooks, which are code of the model's own")
    try:
        traced = trace(_Batched(module) if type(module) in RANKS else module)
    except TraceError:
        raise Unwritable("what it computes cannot be traced to one function") from None
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    calls = []
    for node in traced.graph.nodes:
        if node.op == "get_attr" and str(node.target).removeprefix(PREFIX) not in own:
            raise Unwritable(f"it has a tensor {node.target} that is no parameter or buffer")
        if node.op.startswith("call") and node.target not in ("dim", operator.eq, torch._assert):
            calls.append(node)
    if len(calls) != 1 or traced.graph.output_node().args[0] != [calls[0]]:
        steps = ", ".join(getattr(n.target, "__name__", str(n.target)) for n in calls)
        raise Unwritable(f"it is not one function but {len(calls)} ({steps or 'none'})")
    return traced.graph, calls[0]
