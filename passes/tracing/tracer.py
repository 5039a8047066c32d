"""FX's tracer, with what a graph of a user's own model takes beside it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Proxy
from torch.fx._symbolic_trace import _orig_module_call
from torch.utils import _pytree as pytree

from deltaconvert.passes.calls import Call
from deltaconvert.passes.find_weight import SpectralNorm, WeightNorm
from deltaconvert.passes.functionalize import written_into
from deltaconvert.passes.tracing.canvases import Canvases
from deltaconvert.passes.tracing.explain import line_of_user
from deltaconvert.passes.tracing.input_parameters import input_parameters
from deltaconvert.passes.tracing.proxies import MutableProxy, NotSupported
from deltaconvert.passes.tracing.result_types import result_type
from deltaconvert.passes.tracing.settings import (
    TRAINED_OTHERWISE,
    Settings,
    set_otherwise,
    settings_of,
)

Arguments = tuple[list[Any], dict[str, Any]]


class Tracer(fx.Tracer):
    """FX's tracer, keeping lines, in-place operators, and what kind of thing was returned."""

    def __init__(self, given: int = 0, call: Call | None = None) -> None:
        """Begin a graph; ``given`` is how many inputs are given, if that is known.

        With a ``call``, ``forward`` is called as it says.
        """
        super().__init__()
        self.given, self.call = given, call
        self.autocast: str | None = None
        self.hooks, self.hooks_failed = True, False
        self.out_spec: pytree.TreeSpec | None = None
        self.thread = threading.get_ident()
        self.in_train_mode: set[nn.Module] = set()
        self.settings: Settings = {}
        self.refused: Exception | None = None
        self.evaluating = False
        self.canvases = Canvases(self)

    def proxy(self, node: fx.Node) -> Proxy:
        node.meta["result_type"] = result_type(self.root, node)
        return MutableProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Record an argument, what was written into as a proxy."""
        return super().create_arg(self.canvases.seen(a) if isinstance(a, torch.Tensor) else a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep TorchScript as a call: there is no Python in it to follow.

        A layer of PyTorch's with somebody's own method in it is no leaf: it is not what its type
        says.
        """
        return isinstance(m, torch.jit.ScriptModule) or (
            super().is_leaf_module(m, module_qualified_name) and not _is_patched(m))

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call what a wrapper wraps in its place; leave the modules of other threads alone."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if not self._holds(m):  # `nn.Softmax(1)(x)`
            return forward(*args, **kwargs)
        if m.training and m not in self.in_train_mode and isinstance(m, TRAINED_OTHERWISE):
            raise NotSupported(f"its forward calls {self.path_of_module(m)} in train mode at "
                               f"{line_of_user(sys._getframe(1))}, and a converted model computes "
                               "in eval mode. Leave that to what trains it")
        is_leaf = self.is_leaf_module(m, self.path_of_module(m))
        if is_leaf:
            now = settings_of(m)
            if set_otherwise(self.settings, now):  # than at its call before, which its node is for
                return forward(*args, **kwargs)
            self.settings.update(now)
        made = super().call_module(m, forward, args, kwargs)
        if is_leaf and (m._forward_pre_hooks or m._forward_hooks):
            self._tell_hooks(m, args, kwargs, made)
        return made

    def _tell_hooks(self, leaf: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        """Run the hooks of a layer, unless they would run twice on the same tensor.

        Raises:
            NotSupported: one writes into what it is given.
        """
        last, refused = next(iter(reversed(self.graph.nodes))), self.refused
        try:
            _tell_hooks(leaf, args, kwargs, made)
        except Exception:  # it may be one that logs numbers, and keeps nothing for the model
            self.hooks_failed, self.refused = True, refused
        known = set(itertools.takewhile(lambda n: n is not last, self.graph.nodes)) | {last}
        for node in [n for n in self.graph.nodes if n not in known]:
            if written_into(self.root, node) in known:
                raise NotSupported(
                    f"a hook on {self.path_of_module(leaf)} writes into what it is given at "
                    f"{node.meta['source']}. Let it return another tensor")

    def to_bool(self, obj: Proxy) -> bool:
        """Refuse to tell; code that catches that would go on in a way of its own."""
        try:
            return super().to_bool(obj)
        except Exception as error:
            self.refused = error
            raise

    def _holds(self, m: nn.Module) -> bool:
        """Whether a module is one of the model's, or one with weights, which had to be."""
        try:
            self.path_of_module(m)
        except NameError:
            return bool([*m.parameters(), *m.buffers()])
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record the reading of a weight, but not another thread's."""
        return attr_val if threading.get_ident() != self.thread else super().getattr(
            attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool,
                             concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Make a placeholder of each input; other arguments keep their default.

        FX would make a proxy of ``mask=None`` too, and ``mask is None`` would be false.
        The result is flattened, so that an ``OrderedDict`` or a named tuple is one again.
        """
        bound = own_forward(self.root)
        # Whose `train` keeps them so, whatever it is told, are computed in eval mode.
        self.in_train_mode = {m for m in self.root.modules() if m.training}
        by_place, proxies = self._given_as_called() if self.call else self._given(bound, root_fn)

        def flat(root: nn.Module) -> list[Any]:
            # FX calls a root's forward; its hooks are run by `nn.Module.__call__` itself.
            hooked = is_module and self.hooks and (root._forward_hooks or root._forward_pre_hooks)
            made = (partial(_orig_module_call, root) if hooked else bound)(*by_place, **proxies)
            if self.refused is not None:
                raise self.refused
            leaves, self.out_spec = pytree.tree_flatten(made)
            for leaf in leaves:
                if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                    raise NotSupported(
                        f"it returns a {type(leaf).__name__}, of which PyTorch does not know the "
                        f"parts. Say torch.export.register_dataclass({type(leaf).__name__}) before")
            return leaves
        return flat, [self.root]

    def _given(self, forward: Callable[..., Any], root_fn: Callable[..., Any]) -> Arguments:
        """Return a proxy for each parameter that is an input, by place or by name."""
        inputs = input_parameters(forward, self.given)
        if not inputs:
            raise TypeError(f"forward{inspect.signature(root_fn)} names no input; give convert its "
                            "example_inputs, or wrap the model in one whose forward names each")
        proxies = {p.name: self.create_proxy("placeholder", p.name, (), {}) for p in inputs}
        return [proxies.pop(p.name) for p in _leading(forward, inputs)], proxies

    def _given_as_called(self) -> Arguments:
        """Return the arguments of the call with a proxy for each of its tensors."""
        assert self.call is not None
        args, named = self.call.arguments(
            [self.create_proxy("placeholder", name, (), {}) for name in self.call.names])
        return list(args), named

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a call and its line, unless it would be computed in another precision."""
        device = next((k for k in ("cuda", "cpu") if torch.is_autocast_enabled(k)), "")
        if self.autocast is None:
            self.autocast = device  # what the caller has on is not of the model
        if device != self.autocast:
            raise NotSupported(
                "its forward switches autocast on, which a graph does not keep. Switch it off "
                "there (enabled=False), and say convert(model, dtype='bfloat16') for speed")
        node: fx.Node = super().create_node(*args, **kwargs)
        # FX would write down the whole stack, which takes as long as all else of tracing.
        node.meta["source"] = line_of_user(sys._getframe(1))
        return node


def _is_patched(module: nn.Module) -> bool:
    """Whether a module of PyTorch's has a method of somebody's own in it."""
    kind = type(module)
    return not kind.forward.__module__.startswith("torch.") or any(
        inspect.isfunction(getattr(kind, name, None)) for name in vars(module))


def _tell_hooks(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
    """Run the hooks of a leaf, so that what they keep of a call is a proxy of this trace.

    What they return is the call's own, which runs them.
    """
    for hooks, named, given in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, ()),
            (module._forward_hooks, module._forward_hooks_with_kwargs, (made,))):
        for key, hook in hooks.items():
            if not isinstance(hook, (WeightNorm, SpectralNorm)):
                hook(module, args, *((kwargs,) if key in named else ()), *given)


def _leading(forward: Callable[..., Any], inputs: list[inspect.Parameter]
             ) -> list[inspect.Parameter]:
    """Return the inputs that are given by their place: all before the first that is not one."""
    parameters = inspect.signature(forward).parameters.values()
    return [p for p, chosen in itertools.takewhile(
        lambda pair: pair[0].name == pair[1].name and pair[0].kind is not pair[0].KEYWORD_ONLY,
        zip(parameters, inputs, strict=False))]


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's dense ``forward``, which somebody may have put into it, not its class."""
    forward = vars(module).get("forward") or types.MethodType(type(module).forward, module)
    return getattr(forward, "dense", forward)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in ``torch.compile``, ``DataParallel``, ``AveragedModel`` and the like."""
    while (type(model).__module__.startswith("torch.") and isinstance(model, nn.Module)
           and not isinstance(model, torch.jit.ScriptModule)
           and list(model._modules) in (["_orig_mod"], ["module"])):
        model, = model.children()
    return model
