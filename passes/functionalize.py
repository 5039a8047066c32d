"""Functionalize: what writes into a tensor becomes a new value that later readers see.

Before: ``relu = self.relu(x)`` in place, then ``x + relu`` (both are the rectified map).
After: ``relu = self.relu(x)`` as a function, then ``relu + relu``.

First half of `normalize`. Tensors that share memory (a map and its slices, a view of a
view) are one family: a write through one of them is seen by every later reader of any.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx import GraphModule

from deltaconvert.passes.result import PassResult
from deltaconvert.passes.views import (
    HERE,
    MAYBE_COPIES,
    SAME,
    SAME_MODULES,
    UNSURE,
    VIEW_ATTRIBUTES,
    VIEW_FUNCTIONS,
    VIEW_METHODS,
    VIEWS_IN_PLACE,
    View,
    again,
    memory,
    returns_new,
    through,
    write_through,
)

OUT_OF_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.ipow: operator.pow, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor,
}
# Of a tensor of the model's own, which is no proxy and so is recorded by these names.
IN_PLACE_METHODS = frozenset({"__setitem__", *(f"__{f.__name__}__" for f in OUT_OF_PLACE)})
SHAPE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "nelement", "stride"})
SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})


@dataclass(eq=False)
class _Family:
    """One tensor (or a tuple of some) among those that may share memory.

    Args:
        latest: what holds its numbers now.
        view: the call that made it of others.
        parents: these, by the nodes that stand for them in the call.
        children: what was made of it.
    """

    latest: fx.Node
    view: fx.Node | None = None
    parents: dict[fx.Node, _Family] = field(default_factory=dict)
    children: list[_Family] = field(default_factory=list)


def set_data(x: Any, y: Any) -> Any:
    """Do ``x.data = y``, and return ``x``."""
    x.data = y
    return x


def set_item(x: Any, index: Any, value: Any) -> Any:
    """Return a copy of ``x`` with ``x[index] = value``."""
    x = x.clone()
    x[index] = value
    return x


def out_of_place(x: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Return a copy of ``x`` on which an in-place method was called."""
    x = x.clone()
    getattr(x, method)(*args, **kwargs)
    return x


def functionalize(graph_module: GraphModule) -> PassResult:
    """Rewrite every in-place call; the modules of the (private) copy become out-of-place."""
    graph, result = graph_module.graph, PassResult("functionalize")
    families: dict[fx.Node, _Family] = {}
    shape_values: set[fx.Node] = set()
    in_place_modules = [m for m in graph_module.meta["root"].modules()
                        if getattr(m, "inplace", False) is True
                        and not isinstance(m, torch.jit.ScriptModule)]
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "requires_grad_":
            node.target, node.args, node.kwargs = "detach", node.args[:1], {}
        receiver = _written(graph_module, node)
        written = families.get(receiver) if receiver is not None else None
        sources = [families[n] for n in _sources(graph_module, node) if n in families]
        node.args = fx.map_arg(node.args, lambda n: families[n].latest if n in families else n)
        node.kwargs = fx.map_arg(node.kwargs, lambda n: families[n].latest if n in families else n)
        if _is_shape(node, shape_values):
            shape_values.add(node)
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            continue
        if written is None:
            families[node] = _seen(node, sources)
            continue
        is_view = node.target is set_data or (
            node.op == "call_method" and node.target in VIEWS_IN_PLACE)
        _make_functional(node)
        result.changed.append(f"{node.name}: written into {receiver}")
        if is_view:
            _look_otherwise(families, written, node, sources or [written])
            continue
        families[node] = written
        written.latest = node
        _update_relatives(graph_module, written, node)
    for module in in_place_modules:
        module.inplace = False
    return result


def _seen(node: fx.Node, parents: Sequence[_Family]) -> _Family:
    """Return the family of what a call makes of others' memory, if it does."""
    made = _Family(node, node, {parent.latest: parent for parent in parents})
    for parent in made.parents.values():
        parent.children.append(made)
    return made


def _look_otherwise(families: dict[fx.Node, _Family], seen: _Family, node: fx.Node,
                    parents: Sequence[_Family]) -> None:
    """Let all names of a tensor stand for a view of it, or of another; views of its memory stay."""
    view = _seen(node, parents)
    families.update({name: view for name, family in families.items() if family is seen})
    families[node] = view


def written_into(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor a call writes into; that of a view is the whole tensor's."""
    receiver = _written(model, node)
    while receiver is not None and (
            source := _view_of(model, receiver) or _written(model, receiver)):
        receiver = source
    return receiver


@torch.no_grad()
def writes_into_copy(model: nn.Module, node: fx.Node, value: Callable[[str], Any]) -> bool:
    """Whether what a call writes into is a converted copy of a weight or buffer.

    Args:
        model: that the graph is over.
        node: whose `written_into` is one.
        value: gives the tensor of that name.
    """
    def made(n: fx.Node) -> Any:
        if n.op == "get_attr":
            return value(str(n.target))
        source = _view_of(model, n)
        if source is None:
            return made(_written(model, n))  # type: ignore[arg-type]
        args, kwargs = fx.map_arg((n.args, dict(n.kwargs)),
                                  lambda a: made(a) if a is source else value(str(a.target)))
        return _function(model, n)(*args, **kwargs)
    receiver = _written(model, node)
    assert receiver is not None
    try:
        seen = made(receiver)
    except Exception:  # of what only a frame tells
        return False
    root: Any = written_into(model, node)
    return memory(value(str(root.target))).isdisjoint(memory(seen))


def _written(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor this call writes into."""
    if isinstance(node.kwargs.get("out"), fx.Node):
        return node.kwargs["out"]  # type: ignore[return-value]
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        first = next((v for k, v in node.kwargs.items() if k in ("input", "x", "self")
                      and isinstance(v, fx.Node)), None)
    return first if first is not None and _is_in_place(model, node) else None


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_method":
        name = str(node.target)
        return name in IN_PLACE_METHODS or (
            name.endswith("_") and not name.endswith("__") and name != "requires_grad_")
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False) is True
    if node.op != "call_function":
        return False
    if node.target in OUT_OF_PLACE or node.target in (operator.setitem, set_data):
        return True
    name = getattr(node.target, "__name__", "")
    if getattr(operator, name, None) is node.target:  # ``and_`` and ``or_`` write nowhere
        return False
    return (name.endswith("_") and not name.endswith("__")) or _argument(node, "inplace") is True


def _argument(node: fx.Node, name: str) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
        return node.args[names.index(name)]
    except (TypeError, ValueError, IndexError):
        return None


def _view_of(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the node whose memory a call's result is, or may be by what is known of it."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) and _is_view(model, node) else None


def _sources(model: nn.Module, node: fx.Node) -> list[fx.Node]:
    """Return all nodes whose memory a call's result may be."""
    if not node.op.startswith("call_"):
        return []
    if node.target is set_data:
        return [n for n in node.args[1:] if isinstance(n, fx.Node)]
    seen = _view_of(model, node)
    if seen is not None:
        return [seen]
    return [] if returns_new(model, node) else node.all_input_nodes


def _is_view(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in VIEW_METHODS
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)),
                          (*SAME_MODULES, nn.Flatten, nn.Unflatten))
    if node.target is getattr:
        return node.args[1] in VIEW_ATTRIBUTES
    return node.target in VIEW_FUNCTIONS or _is_inactive_dropout(node)


def _is_inactive_dropout(node: fx.Node) -> bool:
    is_dropout = node.target in UNSURE or (  # torchvision's, which FX is told not to follow
        getattr(node.target, "__name__", "") == "stochastic_depth")
    return is_dropout and any(_argument(node, name) is False for name in ("training", "train"))


def is_shape_read(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its shape, not for its numbers."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and (
        node.args[1] in SHAPE_ATTRIBUTES)


def _is_shape(node: fx.Node, known: set[fx.Node]) -> bool:
    if is_shape_read(node):
        return True
    inputs = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(inputs) and all(
        n in known for n in inputs)


def _make_functional(node: fx.Node) -> None:
    """Turn an in-place call into the function of the same meaning."""
    if node.op == "call_module":
        return
    if "out" in node.kwargs:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
    elif node.target is operator.setitem:
        node.target = set_item
    elif node.target is set_data:
        node.op, node.target, node.args = "call_method", "detach", node.args[1:]
    elif node.target in OUT_OF_PLACE:
        node.target = OUT_OF_PLACE[node.target]
    elif node.op == "call_method":
        name = str(node.target)
        if hasattr(torch.Tensor, name[:-1]):
            node.target = name[:-1]
        else:
            node.op, node.target = "call_function", out_of_place
            node.args = (node.args[0], name, *node.args[1:])
    elif _argument(node, "inplace") is True:
        _set_out_of_place(node)
    else:
        node.target = _twin(node.target)


def _set_out_of_place(node: fx.Node) -> None:
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        position = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
        node.args = (*node.args[:position], False, *node.args[position + 1:])


def _twin(function: Any) -> Callable[..., Any]:
    name = function.__name__[:-1]
    for home in (torch, torch.nn.functional):
        if hasattr(home, name):
            twin: Callable[..., Any] = getattr(home, name)
            return twin
    raise AssertionError(f"{function} has no out-of-place twin")


def _update_relatives(model: GraphModule, written: _Family, after: fx.Node) -> None:
    """Bring everything that may share memory with a written tensor up to date, behind the write."""
    last, reached = after, [written]

    def rise(family: _Family, path: list[_Step]) -> None:
        nonlocal last
        for source, parent in family.parents.items():
            assert family.view is not None
            steps = [(family.view, source), *path]
            reached.append(parent)
            if not parent.parents or _may_copy(model, parent.view):  # others are replayed
                last = _write_back(model, parent, written.latest, steps, last, after)
            rise(parent, steps)

    rise(written, [])
    waiting, relatives = reached, dict.fromkeys(reached)
    while waiting:
        waiting = [c for family in waiting for c in family.children if c not in relatives]
        relatives.update(dict.fromkeys(waiting))
    place = {node: i for i, node in enumerate(model.graph.nodes)}
    for relative in sorted(relatives, key=lambda f: place[f.view]):  # type: ignore[index]
        if relative is written and not any(_may_copy(model, c.view) for c in written.children):
            continue  # else it has to lie in memory as in the dense model
        if any(p in relatives for p in relative.parents.values()):
            last = _replay(model, relative, last)


_Step = tuple[fx.Node, fx.Node]  # a view, and the node in its arguments that it is a view of


def _write_back(model: GraphModule, parent: _Family, value: fx.Node, steps: list[_Step],
                last: fx.Node, after: fx.Node) -> fx.Node:
    """Give a tensor what was written into a view of it; return the last node that was made."""
    functions: list[Callable[..., Any]] = []
    views = tuple(_described(model, view, source, functions) for view, source in steps)
    if all(view == SAME for view in views):
        parent.latest = value
        return last
    with model.graph.inserting_after(last):
        made = model.graph.call_function(
            through(functions) if functions else write_through,
            (parent.latest, value, views))
    made.meta.update({key: value for key, value in after.meta.items() if key != "whole"})
    if held := parent.latest.meta.get("held"):  # of the model: nobody else may read it
        made.meta.update(held=held, whole=True)
    parent.latest = made
    return made


def _may_copy(model: nn.Module, view: fx.Node | None) -> bool:
    """Whether a call is a view of some tensors alone, or by some indices."""
    assert view is not None
    if _view_of(model, view) is None:
        return True
    name, args, _ = _described(model, view, view, [])
    if name != "getitem":
        return name in MAYBE_COPIES
    index = args[0] if isinstance(args[0], tuple) else (args[0],)
    return not all(i is None or i is ... or isinstance(i, (int, slice)) for i in index)


def _described(model: nn.Module, view: fx.Node, source: fx.Node,
               functions: list[Callable[..., Any]]) -> View:
    """Describe a call for `write_through`; a function that has no name there is added to these."""
    if _view_of(model, view) is None:
        functions.append(_function(model, view))
        args, kwargs = fx.map_arg((view.args, dict(view.kwargs)),
                                  lambda n: HERE if n is source else n)
        return len(functions) - 1, args, kwargs
    kwargs = {name: value for name, value in view.kwargs.items() if name != "input"}
    if view.op == "call_method":
        return str(view.target), view.args[1:], kwargs
    if view.op == "call_module":
        module = model.get_submodule(str(view.target))
        if isinstance(module, nn.Flatten):
            return "flatten", (module.start_dim, module.end_dim), {}
        if isinstance(module, nn.Unflatten):
            return "unflatten", (module.dim, module.unflattened_size), {}
        return SAME
    if _is_inactive_dropout(view):
        return SAME
    if view.target is getattr:
        return *VIEW_ATTRIBUTES[str(view.args[1])], {}
    name = "positive" if view.target is operator.pos else view.target.__name__  # type: ignore[union-attr]
    return name, view.args[1:], kwargs


def _function(model: nn.Module, call: fx.Node) -> Callable[..., Any]:
    """Return what a call calls, as a function of all its arguments."""
    if call.op == "call_method":
        return _method(str(call.target))
    if call.op == "call_module":
        return model.get_submodule(str(call.target))
    return call.target  # type: ignore[return-value]


def _method(name: str) -> Callable[..., Any]:
    def method(x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)
    return method


def _replay(model: GraphModule, family: _Family, last: fx.Node) -> fx.Node:
    graph, view = model.graph, family.view
    assert view is not None
    args, kwargs = fx.map_arg((view.args, dict(view.kwargs)), lambda n: (
        family.parents[n].latest if n in family.parents else n))
    with graph.inserting_after(last):
        if _may_copy(model, view):
            new = graph.call_function(again(_function(model, view)), (family.latest, *args), kwargs)
        else:
            new = graph.node_copy(view)
            new.args, new.kwargs = args, kwargs
    new.meta.update({key: value for key, value in view.meta.items() if key != "whole"})
    family.latest = new
    return new
