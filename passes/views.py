"""Views: which calls may return what lies in the memory of their inputs, and how to repeat them.

Part of `functionalize`. A call is one of three kinds: it always returns a view (`CERTAIN`), it
always returns new memory (`returns_new`), or only calling it tells. Of the third kind is all that
is not known to be of another: what it returns is compared with what it was given, by the memory
that both lie in, when `infer` calls it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils import _pytree as pytree

from deltaconvert.operators import registry

CERTAIN = frozenset({
    "view", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "chunk", "split",
    "narrow", "select", "unbind", "expand", "expand_as", "view_as", "detach", "swapaxes",
    "swapdims", "movedim", "tensor_split", "diagonal", "unfold", "broadcast_to", "as_strided",
    "hsplit", "vsplit", "dsplit", "adjoint", "positive", "resolve_conj", "resolve_neg", "conj",
    "moveaxis", "split_with_sizes", "unsafe_chunk", "unsafe_split"})
# These are copies where there is something to convert, or memory does not lie as they want it.
MAYBE_COPIES = frozenset({
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "short", "bool",
    "byte", "char", "cpu", "cuda", "reshape", "flatten", "ravel", "contiguous", "sum_to_size"})
VIEW_METHODS = CERTAIN | MAYBE_COPIES
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
SAME_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
# Functions that a file may name, that are operators, or that promise to return new memory, and may
# return views all the same.
UNSURE = frozenset({
    "reshape_as", "resize_as", "unsafe_split_with_sizes", torch.unsafe_split_with_sizes, F.dropout,
    F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.einsum, torch.meshgrid, torch._VF.meshgrid})  # type: ignore[attr-defined]

View = tuple[str | int, tuple[Any, ...], dict[str, Any]]
SAME: View = ("detach", (), {})
# Stands in a view's arguments for the tensor that it is of, where that is not simply the first.
HERE = "<here>"


def returns_new(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call is known to return new memory, whatever it is given."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return (type_before_parametrizations(module).__module__.startswith("torch.nn.modules.")
                and not isinstance(module, (*SAME_MODULES, nn.Flatten, nn.Unflatten)))
    target = node.target
    if target is torch.einsum and len(node.all_input_nodes) > 1:
        return True  # a product
    if target is getattr or target in UNSURE or (
            target in VIEW_METHODS if node.op == "call_method" else target in VIEW_FUNCTIONS):
        return False
    return _is_known(target) or _says_so(target)


@functools.cache
def _is_known(target: Any) -> bool:
    # Not above: what a file may name is also written through views.
    from deltaconvert.graph_json.allowed import methods, spellings
    return registry.spelling(target) is not None or target in spellings() or target in methods()


@functools.cache
def _says_so(target: Any) -> bool:
    """Whether all overloads of one of PyTorch's operators promise to return new memory.

    Those that are made of other operators do not say what they return.
    """
    found = _schemas(target)
    return bool(found) and not any(
        _is_composite(f"{s.name}.{s.overload_name}".rstrip("."))
        or any(made.alias_info is not None for made in s.returns)
        for s in found if not any(a.is_out for a in s.arguments))


def _is_composite(name: str) -> bool:
    return not torch._C._dispatch_has_kernel(name) or (
        torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"))


def _schemas(target: Any) -> list[Any]:
    if isinstance(target, torch._ops.OpOverload):
        return [target._schema]
    if isinstance(target, torch._ops.OpOverloadPacket):
        return [getattr(target, name)._schema for name in target.overloads()]
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and getattr(torch, name, None) is not target:
        return []
    return [s for s in torch._C._jit_get_schemas_for_operator(f"aten::{name}")
            if any("Tensor" in str(a.type) for a in s.arguments)]


def write_through(x: Any, value: Any, views: tuple[View, ...],
                  functions: tuple[Callable[..., Any], ...] = ()) -> Any:
    """Return ``x`` with one view of it overwritten with ``value``; itself where it is no view.

    Args:
        x: the tensor that the view is of, or a container of it.
        value: what was written into the view.
        views: the calls that lead from ``x`` to the view, one on the other's result: name,
            arguments behind the first, keyword arguments. Or the place of one of the functions,
            and all arguments, with `HERE` for the tensor.
        functions: those that have no name; see `through`.
    """
    # In its own memory format, the dense model's (`infer`): it tells which reshapes are copies.
    copied = pytree.tree_map_only(Tensor, torch.clone, x)
    seen = copied
    for name, args, kwargs in views:
        if isinstance(name, str):
            seen = _named(name)(seen, *args, **kwargs)
        else:
            args, kwargs = _with_here((args, kwargs), seen)
            seen = functions[name](*args, **kwargs)
    # Where the view was a copy, the dense model's write did not reach x either.
    if memory(copied).isdisjoint(memory(seen)):
        return x
    seen.copy_(value)
    return copied


def through(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Return `write_through` with functions for those of its views that have no name."""
    made = functools.partial(write_through, functions=tuple(functions))
    return functools.update_wrapper(made, write_through)


def _with_here(arguments: Any, tensor: Any) -> Any:
    """Put a tensor into the place that is kept for it; FX's own containers become plain ones."""
    if isinstance(arguments, str) and arguments == HERE:
        return tensor
    if isinstance(arguments, (tuple, list)) and not isinstance(arguments, torch.Size):
        parts = [_with_here(part, tensor) for part in arguments]
        return tuple(parts) if isinstance(arguments, tuple) else parts
    if isinstance(arguments, dict):
        return {key: _with_here(part, tensor) for key, part in arguments.items()}
    return arguments


def seen_again(function: Callable[..., Any], before: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what a call gives of arguments that were written into since it was made.

    Where it returns no view of them, that is what it gave ``before``.
    """
    known, spec = memory((args, kwargs)), pytree.tree_structure(before)
    old, new = map(pytree.tree_leaves, (before, function(*args, **kwargs)))
    seen = [o if memory(n).isdisjoint(known) else n for o, n in zip(old, new, strict=True)]
    return before if all(map(operator.is_, seen, old)) else pytree.tree_unflatten(seen, spec)


def again(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `seen_again` for a function."""
    return functools.update_wrapper(functools.partial(seen_again, function), seen_again)


def is_repeated(node: fx.Node) -> bool:
    """Whether a call is there because another one may have returned a view."""
    return getattr(node.target, "__wrapped__", node.target) in (write_through, seen_again)


def memory(value: Any) -> set[int]:
    """Return what stands for the memory of all tensors in a value of nested containers."""
    return {t.untyped_storage()._cdata for t in pytree.tree_leaves(value)
            if isinstance(t, Tensor) and t.layout is torch.strided}


def _named(view: str) -> Callable[..., Any]:
    """Return the function of a view that was named."""
    if view == "getitem":
        return operator.getitem
    made: Callable[..., Any] = getattr(torch.Tensor if view in VIEW_METHODS else torch, view)
    return made
