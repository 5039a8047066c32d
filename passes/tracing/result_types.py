"""What type the result of a call will have, as far as that is known before any shape is.

``F.relu(x)`` gives a tensor and ``x.shape[2:]`` a `torch.Size`, whatever the frame; what
``x.max(dim)`` or a function of the model's own gives, only a call of it tells.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size, "dtype": torch.dtype, "device": torch.device, "ndim": int,
    "is_cuda": bool, "requires_grad": bool,
    **dict.fromkeys(("T", "mT", "data", "real", "imag"), Tensor)}
CONVERSIONS = frozenset({"float", "double", "half", "bfloat16", "int", "long", "short", "bool",
                         "byte", "char", "eq", "ne"})
OF_NUMBERS = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod})
NAMED = {"Tensor": Tensor, "List[Tensor]": tuple, "int": int, "bool": bool}
# Layers that may return several tensors.
SEVERAL = (nn.MultiheadAttention, nn.RNNBase, nn.LSTMCell, nn.AdaptiveLogSoftmaxWithLoss,
           torch.jit.ScriptModule)


def result_type(root: nn.Module, node: fx.Node) -> type | None:
    """Return the type of what a node stands for in a graph over ``root``; None if unknown.

    It reads what this returned for the node's inputs, in their ``meta["result_type"]``.
    """
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        return nn.Parameter if name in root.get_submodule(path)._parameters else Tensor
    types = [a.meta.get("result_type") if isinstance(a, fx.Node) else type(a) for a in node.args]
    if node.op == "call_module":
        return _of_module(root.get_submodule(str(node.target)), types)
    if node.op == "call_method" and types and _is_tensor(types[0]):
        return _of_method(str(node.target), len(node.args) + len(node.kwargs))
    if node.op == "call_function":
        return _of_function(node, types)
    return Tensor if node.op == "placeholder" else None


def _of_module(module: nn.Module, types: list[type | None]) -> type | None:
    if isinstance(module, nn.Identity):
        return types[0] if types else None
    if isinstance(module, (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)):
        return tuple if module.return_indices else Tensor
    return None if isinstance(module, SEVERAL) else Tensor


def _of_function(node: fx.Node, types: list[type | None]) -> type | None:
    function: Any = node.target
    name = getattr(function, "__name__", "")
    if function is getattr:
        return ATTRIBUTES.get(str(node.args[1])) if _is_tensor(types[0]) else None
    if function is operator.getitem:
        return _of_item(types[0], node.args[1])
    if function is getattr(operator, name, None):
        if any(map(_is_tensor, types)):
            return Tensor
        return int if function in OF_NUMBERS and set(types) == {int} else None
    if node.kwargs.get("return_indices") is False:
        return Tensor
    return _declared(function)


def _of_item(of: type | None, index: Any) -> type | None:
    """Return the type of a part: of a tensor, of a size, or of a tuple, which is of tensors."""
    if of is None or _is_tensor(of):
        return of and Tensor
    if isinstance(index, slice):
        return of
    return (int if of is torch.Size else Tensor) if issubclass(of, tuple) else None


def _of_method(name: str, given: int) -> type | None:
    if name == "size":
        return torch.Size if given == 1 else int
    return Tensor if name in CONVERSIONS else _of_schemas(name)


def _is_tensor(of: type | None) -> bool:
    return of is not None and issubclass(of, Tensor)


@cache
def _declared(function: Callable[..., Any]) -> type | None:
    """Return what one of PyTorch's functions says of its result; others say nothing here."""
    home = (getattr(function, "__module__", None) or "torch").partition(".")[0]
    if home != "torch":
        return None
    try:
        if inspect.signature(function).return_annotation in (Tensor, "Tensor"):
            return Tensor
    except (TypeError, ValueError):
        pass  # it is none of Python's
    return _of_schemas(getattr(function, "__name__", ""))


@cache
def _of_schemas(name: str) -> type | None:
    """Return what all overloads of an operator on tensors return."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    of_tensors = [s for s in schemas if s.arguments and str(s.arguments[0].type) in (
        "Tensor", "List[Tensor]")]  # others are of TorchScript's numbers, or make a tensor
    found = {" ".join(str(made.type) for made in s.returns) for s in of_tensors or schemas}
    return NAMED.get(found.pop()) if len(found) == 1 else None
