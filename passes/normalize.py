"""Normalize: every spelling of an operator becomes its one canonical function.

Before: ``self.relu(x)``, ``F.relu(x, inplace=True)``, ``torch.relu_(x)``, ``x.relu()``.
After: ``relu(x)`` four times. Settings are keyword arguments, weights are ``get_attr``
nodes with the names they have in the state dict, identities are gone. What has no
canonical form stays as it was written, with the reason in ``meta["reason"]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx import GraphModule
from torch.nn.utils.parametrize import type_before_parametrizations

from deltaconvert.operators import registry
from deltaconvert.operators.registry import Call, Refusal
from deltaconvert.passes.emit import emit
from deltaconvert.passes.find_weight import WeightFinder
from deltaconvert.passes.find_writes import drop_unused
from deltaconvert.passes.functionalize import functionalize, out_of_place, set_item
from deltaconvert.passes.result import PassResult
from deltaconvert.passes.views import write_through

WRITES = {set_item: "an assignment to a part of a tensor",
          write_through: "a write into a tensor through a view of it",
          out_of_place: "an in-place method that has no other form"}

# NumPy's names of arguments, which PyTorch's functions and methods take for their own.
ALIASES = {"axis": "dim", "keepdims": "keepdim"}

# Memory that nobody has written yet: any numbers will do, but the same ones each time.
UNWRITTEN = {torch.empty_like: torch.zeros_like, "new_empty": "new_zeros"}


def normalize(graph_module: GraphModule) -> PassResult:
    """Rewrite the graph in place, in-place operators first."""
    result = PassResult("normalize", changed=functionalize(graph_module).changed)
    for node in list(graph_module.graph.nodes):
        if node.op not in ("call_function", "call_method", "call_module"):
            continue
        node.target = UNWRITTEN.get(node.target, node.target)
        adapter, reason = _adapter(graph_module, node)
        if adapter and node.op != "call_module":
            node.kwargs = {ALIASES.get(name, name): value for name, value in node.kwargs.items()}
        try:
            meaning = adapter(*node.args, **node.kwargs) if adapter else None
        except Refusal as refusal:
            node.meta["reason"] = result.refused[node.name] = str(refusal)
            node.meta["advice"] = refusal.advice
            continue
        except (TypeError, ValueError):
            name = getattr(node.target, "__name__", str(node.target))
            node.meta["reason"] = result.refused[node.name] = (
                f"{name} is called with arguments that deltaconvert does not know")
            continue
        if meaning is None:
            node.meta["reason"] = reason
        else:
            _replace(graph_module.graph, node, meaning, result)
    drop_unused(graph_module.graph)
    graph_module.recompile()
    return result


def _adapter(graph_module: GraphModule, node: fx.Node) -> tuple[Callable[..., Any] | None, str]:
    if node.op == "call_module":
        return _module_adapter(graph_module, node)
    adapter = _of_target(node.target)
    written = getattr(node.target, "__wrapped__", node.target)
    if written in WRITES:
        return None, WRITES[written]
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "?")
    return adapter, f"{name} is not an operator that deltaconvert knows"


def _of_target(target: Any) -> Callable[..., Any] | None:
    """Look a function up by itself, or by its full name (so that no package is imported)."""
    try:
        found = registry.spelling(target)
    except TypeError:
        return None
    full_name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    return found or registry.spelling(full_name)


def _module_adapter(graph_module: GraphModule, node: fx.Node
                    ) -> tuple[Callable[..., Any] | None, str]:
    path = str(node.target)
    module = graph_module.get_submodule(path)
    kind = type_before_parametrizations(module)
    adapter = registry.module_spelling(kind)
    if adapter is None:
        return None, f"{kind.__name__} is not an operator that deltaconvert knows"
    attribute = WeightFinder(graph_module.graph, node, module, path)
    if attribute.refusal:
        return None, attribute.refusal
    return lambda *args, **kwargs: adapter(module, attribute, *args, **kwargs), ""


def _replace(graph: fx.Graph, node: fx.Node, meaning: Any, result: PassResult) -> None:
    if isinstance(meaning, Call):
        node.op, node.target = "call_function", meaning.function
        node.args = tuple(emit(graph, node, a, node.meta, []) for a in meaning.args)
        node.kwargs = {name: emit(graph, node, value, node.meta, [])
                       for name, value in meaning.params.items()}
        result.changed.append(f"{node.name}: {meaning.function.__name__}")
        return
    node.replace_all_uses_with(meaning)
    graph.erase_node(node)
    result.changed.append(f"{node.name}: disappeared")
