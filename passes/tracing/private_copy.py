"""A copy of a model to trace and to keep, with the functions that it holds seeing the copy."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltaconvert.errors import TraceError, lacks_memory

Copies = Mapping[int, Any]  # by the identity of what they are of


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model, with what ``torch.nn.utils.weight_norm`` leaves in it.

    That is a computed weight as an attribute, and PyTorch copies no tensors with a gradient. A
    function of TorchScript is not copied either, and need not be: it holds no weights. Functions
    of Python are not, and go on with what they were made with: a hook that keeps a map in
    ``self.maps``, or a ``forward`` that was made within ``__init__``, with the original. The copy
    gets such functions made anew.

    Raises:
        TraceError: where something in it cannot be copied.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    copies: dict[int, Any] = {id(value): value.detach().clone() for value in held
                              if isinstance(value, Tensor) and not value.is_leaf}
    copies |= {id(value): value for value in held if isinstance(value, torch.jit.ScriptFunction)}
    try:
        copied = copy.deepcopy(model, copies)
    except (TypeError, RuntimeError, AttributeError, pickle.PickleError) as error:
        if lacks_memory(error):
            raise
        raise TraceError(f"{type(model).__name__} cannot be copied ({error}), and the original is "
                         "to stay as it is. Make what cannot be copied where it is used, or take "
                         "it out of the model's attributes before.") from error
    for module in copied.modules():
        tables: tuple[dict[Any, Any], ...] = (vars(module), module._forward_hooks,
                                              module._forward_pre_hooks)
        for table in tables:
            for name, value in table.items():
                if isinstance(value, (types.FunctionType, types.MethodType, partial)):
                    table[name] = _following(value, copies)
    return copied


def _following(value: Any, copies: Copies, within: tuple[Any, ...] = ()) -> Any:
    """Return what a function in a copy should see in the place of what it saw; mostly the same."""
    if id(value) in copies:
        return copies[id(value)]
    if any(value is other for other in within):
        return value
    if isinstance(value, types.FunctionType):
        return _function_following(value, copies, (*within, value))
    if isinstance(value, types.MethodType):
        function = _following(value.__func__, copies, within)
        owner = copies.get(id(value.__self__), value.__self__)
        same = function is value.__func__ and owner is value.__self__
        return value if same else types.MethodType(function, owner)
    if isinstance(value, partial):
        function = _following(value.func, copies, within)
        return value if function is value.func else partial(function, *value.args,
                                                            **value.keywords)
    if isinstance(value, (list, tuple, dict)):
        leaves, spec = pytree.tree_flatten(value)
        followed = [copies.get(id(leaf), leaf) for leaf in leaves]
        if any(a is not b for a, b in zip(leaves, followed, strict=True)):
            return pytree.tree_unflatten(followed, spec)
    return value


def _function_following(function: types.FunctionType, copies: Copies,
                        within: tuple[Any, ...]) -> types.FunctionType:
    """Make a function anew if it sees anything that was copied, by whatever name."""
    def follow(value: Any) -> Any:
        return _following(value, copies, within)
    cells = tuple(_cell(cell, follow) for cell in function.__closure__ or ())
    defaults, named = follow(function.__defaults__), follow(function.__kwdefaults__)
    names = {name: copies[id(value)] for name in function.__code__.co_names
             if id(value := function.__globals__.get(name)) in copies}
    if (not names and defaults is function.__defaults__ and named is function.__kwdefaults__
            and all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True))):
        return function
    made = types.FunctionType(
        function.__code__, {**function.__globals__, **names} if names else function.__globals__,
        function.__name__, defaults, cells)
    made.__kwdefaults__, made.__qualname__ = named, function.__qualname__
    made.__module__ = function.__module__
    made.__dict__.update(function.__dict__)
    return made


def _cell(cell: types.CellType, follow: Any) -> types.CellType:
    """Return a cell with what was copied in it; one that need not change is shared as before."""
    try:
        value = cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return cell
    followed = follow(value)
    return cell if followed is value else types.CellType(followed)
