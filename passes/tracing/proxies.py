"""What stands for a tensor while a model is traced, and what a model is told that asks its type."""

from __future__ import annotations

import builtins
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import Attribute
from torch.utils import _pytree as pytree

from deltaconvert.passes.functionalize import set_data
from deltaconvert.passes.tracing.result_types import ATTRIBUTES

IN_PLACE = {"__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul,
            "__itruediv__": operator.itruediv, "__ifloordiv__": operator.ifloordiv,
            "__imod__": operator.imod, "__ipow__": operator.ipow, "__iand__": operator.iand,
            "__ior__": operator.ior, "__ixor__": operator.ixor}

# Whose code is no model's.
LIBRARIES = frozenset({"torch", "deltaconvert", "copy", "pickle", "weakref", "typing",
                       "inspect", "dataclasses", "contextlib"})


VIEWS = frozenset({"T", "mT", "H", "mH", "real", "imag"})


class NotSupported(Exception):
    """Raised for what can be traced, but means something that no graph says."""


class NeedsShapes(Exception):
    """Raised where a graph may be wrong that was made without knowing shapes."""


class _Named(Attribute):
    """A device or dtype, whose text no code may go by before it is known."""

    def __str__(self) -> str:
        raise NeedsShapes(f"the text of a map's {self.attr} is asked, which only its call tells")

    def __format__(self, how: str) -> str:
        return str(self)


class MutableProxy(Proxy):
    """A proxy that records ``x += y`` and ``x[i] = y`` as what they are.

    FX's own falls back to ``x = x + y``, which loses that other names of the same
    tensor see the sum too.
    """

    def stands_for(self) -> type | None:
        """Return the type of what this stands for; None where it is not known here."""
        return self.node.meta.get("result_type")

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record an item assignment."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> Any:
        """Take ``x.data`` as ``x.detach()``: a write into it is one into ``x``.

        What no tensor has, a model is told that this has not; a weight may have more.
        """
        if name == "data":
            return self.detach()
        kind = self.stands_for()
        if kind in (Tensor, nn.Parameter) and not hasattr(kind, name) and not (
                self.node.op == "get_attr" and hasattr(self._weight(), name)):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        if name in ("device", "dtype"):
            return _Named(self, name)
        if name in VIEWS:  # FX's own attribute takes no ``x.T += y``, nor ``x.T[i] = y``
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def _weight(self) -> Any:
        """Return what is read of the model; its ``getattr`` would give a proxy."""
        path, _, name = str(self.node.target).rpartition(".")
        module = self.tracer.root.get_submodule(path)  # type: ignore[attr-defined]
        return {**vars(module), **module._buffers, **module._parameters}.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Record ``x.data = y``, behind which ``x`` lies where ``y`` does."""
        if name == "data":
            self.tracer.create_proxy("call_function", set_data, (self, value), {})
        else:
            super().__setattr__(name, value)


def _recorded(target: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: MutableProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})
    return method


for _name, _target in IN_PLACE.items():
    setattr(MutableProxy, _name, _recorded(_target))


class _AsksProxies(type):
    """Of a class that is `type` to all who use it, but for one proxy alone."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and issubclass(type(args[0]), (MutableProxy, Attribute)):
            return _stood_for(args[0])
        return type(*args, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return kind is cls or issubclass(kind, type)

    def __getitem__(cls, kind: Any) -> Any:
        return type[kind]


class _Type(metaclass=_AsksProxies):
    """What a model's code finds as ``type`` while it is traced."""


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Answer what a model asks by ``isinstance(x, Tensor)`` and, in its own code, ``type(x)``.

    And follow functions of TorchScript into the Python that they were made of.

    Others are told of the proxy. Its ``__class__`` may not say it: PyTorch's C++ goes by that, and
    would take a proxy for the memory of a tensor.
    """
    ask = builtins.isinstance

    def asked(value: Any, kinds: Any, /) -> bool:
        if not issubclass(type(value), (MutableProxy, Attribute)):
            return ask(value, kinds)
        asks = sys._getframe(1)
        if asks.f_code is torch.is_tensor.__code__ and asks.f_back is not None:
            asks = asks.f_back
        if _of_library(asks.f_globals.get("__name__", "")):
            return ask(value, kinds)
        return issubclass(_stood_for(value), kinds) or ask(value, kinds)
    patched = [names for names in _names_of_code(model) if "type" not in names]
    builtins.isinstance, run = asked, torch.jit.ScriptFunction.__call__
    torch.jit.ScriptFunction.__call__ = (  # type: ignore[method-assign]
        _following_scripts(run))
    for names in patched:
        names["type"] = _Type
    try:
        yield
    finally:
        builtins.isinstance = ask
        torch.jit.ScriptFunction.__call__ = run  # type: ignore[method-assign]
        for names in patched:
            del names["type"]


def _following_scripts(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(script: Any, *args: Any, **named: Any) -> Any:
        # One of `torch.jit.trace`, which has no name, may have gone another way than its Python.
        if hasattr(script, "__name__") and any(
                issubclass(type(leaf), Proxy) for leaf in pytree.tree_leaves((args, named))):
            return script._torchdynamo_inline(*args, **named)
        return run(script, *args, **named)
    return call


def _names_of_code(model: nn.Module) -> list[dict[str, Any]]:
    """Return the names of all modules of the packages that a model's code is of."""
    homes = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    homes |= {own.__module__ for module in model.modules() for own in vars(module).values()
              if isinstance(own, (types.FunctionType, types.MethodType)) and own.__module__}
    packages = {home.partition(".")[0] for home in homes} - LIBRARIES - {"builtins"}
    return [vars(module) for name, module in list(sys.modules.items())
            if name.partition(".")[0] in packages and isinstance(module, types.ModuleType)]


def _of_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


def _stood_for(proxy: MutableProxy | Attribute) -> type:
    """Return the type of what a proxy stands for.

    Raises:
        NeedsShapes: it is not known without shapes.
    """
    kind = (ATTRIBUTES.get(proxy.attr, Attribute) if isinstance(proxy, Attribute)
            else proxy.stands_for())
    if kind is None:
        raise NeedsShapes(f"the type of what {proxy.node.name} gives is asked, which only its "
                          "call tells")
    return kind
