"""Store as: values and weights in the precision that the configuration asks for.

Before: ``y = conv2d(x, w, b)``, all in the model's float32.
After: the same in bfloat16, say. Frames are rounded at the door in, outputs are what the model
returns at the door out.

Derived weights are rounded once, after they were derived. What the model converts to another
precision on its way is converted back: that is not for its code to know. Modules that are called as
they are keep their weights, and compute in the precision of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from deltaconvert.errors import ConfigError, FrameError
from deltaconvert.passes.annotate import NeedsNumbers, annotate
from deltaconvert.passes.result import PassResult


def store_as(graph_module: GraphModule, name: str | None) -> PassResult:
    """Annotate the graph anew, in place; ``name`` is `Config.dtype`, nothing changes nothing.

    Leaves ``meta["given"]`` with the output: what the model itself would return, in order.

    Raises:
        ConfigError: where an operator does not take that precision.
    """
    result = PassResult("store_as")
    if name is None:
        return result
    dtype, nodes = getattr(torch, name), list(graph_module.graph.nodes)
    (returned,) = nodes[-1].args
    nodes[-1].meta["given"] = [n.meta["value"] if isinstance(n, fx.Node) else n for n in returned]
    for node in nodes[:-1]:
        given = node.meta["value"]
        if node.op == "placeholder" or node.meta["constant"]:
            node.meta["value"] = rounded(given, dtype)
        else:
            _convert_before(graph_module, node)
            _annotate(graph_module, node, name)
            if _differs(node.meta["value"], dtype):
                _convert_behind(graph_module, node, dtype)
        if _differs(given, dtype):
            result.changed.append(f"{node.name}: {name}")
    graph_module.recompile()
    return result


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """Round the floating-point tensors in a value of nested containers."""
    return pytree.tree_map(lambda v: v.to(dtype) if _floats(v) else v, value)


def floating_dtype(value: Any) -> torch.dtype | None:
    """Return the precision of the first floating-point tensor in a value, if there is one."""
    return next((v.dtype for v in pytree.tree_leaves(value) if _floats(v)), None)


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _differs(value: Any, dtype: torch.dtype) -> bool:
    return any(_floats(v) and v.dtype != dtype for v in pytree.tree_leaves(value))


def _annotate(graph_module: GraphModule, node: fx.Node, name: str) -> None:
    try:
        annotate(graph_module, node)
    except (FrameError, NeedsNumbers) as error:
        raise ConfigError(
            f"dtype={name}: {node.name} does not take it ({error.__cause__ or error}; "
            f"{node.meta.get('source') or 'no line known'}). Leave dtype out, or convert the part "
            "of the model before it (modules=[...]).") from error


def _convert_before(graph_module: GraphModule, node: fx.Node) -> None:
    """Give a module that is called as it is its inputs in the precision of its own weights."""
    if node.op != "call_module":
        return
    module = graph_module.get_submodule(str(node.target))
    own = floating_dtype([*module.parameters(), *module.buffers()])
    for source in node.all_input_nodes:
        if own is not None and _differs(source.meta["value"], own):
            with graph_module.graph.inserting_before(node):
                made = graph_module.graph.call_method("to", (source, own))
            made.meta.update(node.meta, value=rounded(source.meta["value"], own),
                             constant=source.meta["constant"], multiply_adds=0)
            node.replace_input_with(source, made)


def _convert_behind(graph_module: GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    """Give the readers of a node its value in the precision that is stored."""
    if not isinstance(node.meta["value"], Tensor):
        return
    readers = list(node.users)
    with graph_module.graph.inserting_after(node):
        made = graph_module.graph.call_method("to", (node, dtype))
    made.meta.update(node.meta, value=node.meta["value"].to(dtype))
    for reader in readers:
        reader.replace_input_with(node, made)
