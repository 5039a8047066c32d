"""Functionalize: what writes into a tensor becomes a new value that later readers see.

Before: ``relu = self.relu(x)`` in place, then ``x + relu`` (both are the rectified map).
After: ``relu = self.relu(x)`` as a function, then ``relu + relu``.

First half of `normalize`. Tensors that share memory (a map and its slices, a view of a
view) are one family: a write through one of them is seen by every later reader of any.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import GraphModule

from deltaconvert.passes.result import PassResult

OUT_OF_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.ipow: operator.pow, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor,
}
# Of a tensor of the model's own, which is no proxy and so is recorded by these names.
IN_PLACE_METHODS = frozenset({"__setitem__", *(f"__{f.__name__}__" for f in OUT_OF_PLACE)})
VIEW_METHODS = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute",
    "t", "chunk", "split", "narrow", "select", "unbind", "expand", "expand_as", "view_as",
    "detach", "swapaxes", "swapdims", "movedim", "tensor_split", "diagonal", "contiguous",
    "unfold", "ravel", "broadcast_to", "as_strided", "hsplit", "vsplit", "dsplit", "adjoint",
    "positive", "resolve_conj", "resolve_neg", "conj", "moveaxis", "split_with_sizes",
    "unsafe_chunk", "unsafe_split", "sum_to_size"})
# These are copies where there is something to convert.
CONVERSIONS = frozenset({
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "short", "bool",
    "byte", "char", "cpu", "cuda"})
VIEW_METHODS |= CONVERSIONS
# And these where memory does not lie as they want it.
MAYBE_COPIES = CONVERSIONS | {"reshape", "flatten", "ravel", "contiguous", "sum_to_size"}
# After these a tensor is itself another view of what lies in its memory.
VIEWS_IN_PLACE = frozenset({
    "unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_"})
VIEW_FUNCTIONS = frozenset(
    {getattr(torch, name) for name in VIEW_METHODS if callable(getattr(torch, name, None))}
    | {operator.getitem, operator.pos, torch.atleast_1d, torch.atleast_2d, torch.atleast_3d,
       torch.view_as_real, torch.view_as_complex, torch.real, torch.imag})
# What `write_through` may be told.
VIEW_NAMES = VIEW_METHODS | {f.__name__ for f in VIEW_FUNCTIONS} - {"pos"}
VIEW_ATTRIBUTES: dict[str, tuple[str, tuple[int, ...]]] = {
    "T": ("t", ()), "mT": ("transpose", (-2, -1)), "H": ("adjoint", ()), "mH": ("adjoint", ()),
    "real": ("real", ()), "imag": ("imag", ())}
# What returns its very argument, in eval mode.
DROPOUTS = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
                      F.feature_alpha_dropout, torch.dropout})
SAME_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
SHAPE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "nelement", "stride"})
SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})


@dataclass(eq=False)
class _Family:
    """One tensor among those that share memory."""

    latest: fx.Node
    parent: _Family | None = None
    view: fx.Node | None = None
    children: list[_Family] = field(default_factory=list)


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


View = tuple[str, tuple[Any, ...], dict[str, Any]]
SAME: View = ("detach", (), {})


def write_through(x: Any, value: Any, views: tuple[View, ...]) -> Any:
    """Return a copy of ``x`` in which one view of it was overwritten with ``value``.

    Args:
        x: the tensor that the view is of.
        value: what was written into the view.
        views: the calls that lead from ``x`` to the view, one on the other's result: name,
            arguments behind the first, keyword arguments.
    """
    # In the memory format of the dense model: in another one a reshape would be a copy.
    x = x.clone(memory_format=torch.contiguous_format)
    seen = x
    for name, args, kwargs in views:
        seen = _named(name)(seen, *args, **kwargs)
    # Where the view was a copy, the dense model's write did not reach x either.
    if seen.untyped_storage()._cdata == x.untyped_storage()._cdata:
        seen.copy_(value)
    return x


def seen_again(x: Any, before: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Return what a view is of an ``x`` written into since; where it is a copy, as ``before``."""
    made = _named(name)(x, *args, **kwargs)
    return made if made.untyped_storage()._cdata == x.untyped_storage()._cdata else before


def _named(view: str) -> Callable[..., Any]:
    """Return the function of a view that `_described` named."""
    if view == "getitem":
        return operator.getitem
    made: Callable[..., Any] = getattr(torch.Tensor if view in VIEW_METHODS else torch, view)
    return made


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
        target = _view_of(graph_module, node)
        parent = families.get(target) if target is not None else None
        node.args = fx.map_arg(node.args, lambda n: families[n].latest if n in families else n)
        node.kwargs = fx.map_arg(node.kwargs, lambda n: families[n].latest if n in families else n)
        if _is_shape(node, shape_values):
            shape_values.add(node)
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            continue
        if written is None:
            families[node] = _Family(node, parent, node if parent else None)
            if parent:
                parent.children.append(families[node])
            continue
        is_view = node.op == "call_method" and node.target in VIEWS_IN_PLACE
        _make_functional(node)
        result.changed.append(f"{node.name}: written into {receiver}")
        if is_view:
            _look_otherwise(families, written, node)
            continue
        families[node] = written
        written.latest = node
        _update_relatives(graph_module, written, node)
    for module in in_place_modules:
        module.inplace = False
    return result


def _look_otherwise(families: dict[fx.Node, _Family], seen: _Family, node: fx.Node) -> None:
    """Let all names of a tensor stand for a view of it; other views of its memory stay."""
    view = _Family(node, seen, node)
    seen.children.append(view)
    families.update({name: view for name, family in families.items() if family is seen})
    families[node] = view


def written_into(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor a call writes into; that of a view is the whole tensor's."""
    receiver = _written(model, node)
    while receiver is not None and (
            source := _view_of(model, receiver) or _written(model, receiver)):
        receiver = source
    return receiver


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
    if node.target in OUT_OF_PLACE or node.target is operator.setitem:
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
    """Return the node whose memory a call's result may be."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) and _is_view(model, node) else None


def _is_view(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in VIEW_METHODS
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)),
                          (*SAME_MODULES, nn.Flatten, nn.Unflatten))
    if node.op != "call_function" or node.target is getattr:
        return node.op == "call_function" and node.args[1] in VIEW_ATTRIBUTES
    return node.target in VIEW_FUNCTIONS or _is_inactive_dropout(node)


def _is_inactive_dropout(node: fx.Node) -> bool:
    is_dropout = node.target in DROPOUTS or (  # torchvision's, which FX is told not to follow
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
    """Bring everything that shares memory with a written tensor up to date, behind the write."""
    graph, root, last = model.graph, written, after
    path: list[View] = []
    while root.parent is not None:
        path.insert(0, _described(model, root.view))
        root = root.parent
        if root.parent is not None and not _may_copy(_described(model, root.view)):
            continue  # it is replayed
        if all(view == SAME for view in path):
            root.latest = written.latest
            continue
        with graph.inserting_after(last):
            last = graph.call_function(write_through, (root.latest, written.latest, tuple(path)))
        last.meta.update(after.meta)
        root.latest = last
    pending = [root]
    while pending:
        family = pending.pop()
        for relative in family.children:
            if relative is not written:
                last = _replay(model, relative, family.latest, last)
            pending.append(relative)


def _may_copy(view: View) -> bool:
    """Whether what is no view of every tensor, or by every index, is so of some."""
    name, args, _ = view
    if name != "getitem":
        return name in MAYBE_COPIES
    index = args[0] if isinstance(args[0], tuple) else (args[0],)
    return not all(i is None or i is ... or isinstance(i, (int, slice)) for i in index)


def _described(model: nn.Module, view: fx.Node | None) -> View:
    assert view is not None
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


def _replay(model: GraphModule, family: _Family, source: fx.Node, last: fx.Node) -> fx.Node:
    graph, view = model.graph, family.view
    assert view is not None
    described = name, args, kwargs = _described(model, view)
    if _may_copy(described):
        with graph.inserting_after(last):
            new = graph.call_function(seen_again, (source, family.latest, name, *args), kwargs)
        new.meta.update(view.meta)
        family.latest = new
        return new
    with graph.inserting_after(last):
        new = graph.node_copy(view)
    new.args = (source, *view.args[1:])
    new.kwargs = {name: value for name, value in view.kwargs.items() if name != "input"}
    new.meta.update(view.meta)
    family.latest = new
    return new
