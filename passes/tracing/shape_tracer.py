"""Trace with the frames' shapes known, for code that branches on them.

Before: ``if x.shape[-1] % 32: ...``, ``x.view(*x.shape[:2], -1)``, ``for i in range(len(xs))``.
After: the graph that such code runs through for frames of these very shapes.

Second attempt of `trace`. Every call is also made on fake tensors, so that a proxy knows
its shape, and shapes are plain numbers; the numbers in a tensor stay unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from deltaconvert.passes.annotate import attribute
from deltaconvert.passes.tracing.proxies import MutableProxy
from deltaconvert.passes.tracing.tracer import Tracer


class _ShapedProxy(MutableProxy):
    """A proxy that answers what its fake tensor knows."""

    @property
    def fake(self) -> Any:
        """The fake tensor, or the container of them."""
        return self.node.meta["fake"]

    def stands_for(self) -> type | None:
        """Return the type of what is known to come here."""
        if self.node.op == "get_attr":
            return super().stands_for()
        return Tensor if isinstance(self.fake, Tensor) else type(self.fake)

    def __len__(self) -> int:
        """Return the size of the first dimension, or of a container."""
        return len(self.fake)

    def __iter__(self) -> Any:
        """Yield proxies of the parts."""
        return iter([self.__getitem__(i) for i in range(len(self))])

    def __getattr__(self, name: str) -> Any:
        """Answer attributes that are not tensors at once, and record those that are.

        FX would record ``x.max(1).values`` at its first use, as what knows no shape.
        """
        known = getattr(self.fake, name, None)
        if known is None or callable(known) or name == "data":
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {}) if (
            _has_tensor(known)) else known


class ShapeTracer(Tracer):
    """A tracer that knows the shapes of its inputs.

    Args:
        frames: like those to come.
    """

    def __init__(self, frames: Sequence[Tensor]) -> None:
        """Make fake tensors of the frames."""
        super().__init__(len(frames), getattr(frames, "call", None))
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.waiting = [self.mode.from_tensor(f) for f in frames]

    def proxy(self, node: fx.Node) -> _ShapedProxy:
        super().proxy(node)
        return _ShapedProxy(node, self)

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """Let a module that runs on fake tensors run."""
        return forward(*args, **kwargs) if self.evaluating else super().call_module(
            m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Give a module that runs on fake tensors its own weights."""
        return attr_val if self.evaluating else super().getattr(
            attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any,
                     **named: Any) -> Any:
        """Record a call, make it on fake tensors, and return plain numbers as such."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if kind == "placeholder":
            made.node.meta["fake"] = self.waiting.pop(0) if self.waiting else None
        elif kind == "get_attr":
            with self._evaluation():
                made.node.meta["fake"] = attribute(self.root, str(target))
        elif kind != "output":
            try:
                value = self._evaluate(kind, target, args, kwargs)
            except DataDependentOutputException:
                if not any(map(_is_scalar, pytree.tree_leaves((args, kwargs)))):
                    raise
                # `x.new_full(size, stride)`: a constant is asked for its number, which it has.
                args, kwargs = map_aggregate((args, kwargs), _number)
                self.graph.erase_node(made.node)
                return self.create_proxy(kind, target, args, kwargs, *rest, **named)
            if not _has_tensor(value) and value is not None:
                self.graph.erase_node(made.node)
                return value
            made.node.meta["fake"] = value
        return made

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = map_aggregate((args, kwargs), lambda a: a.node.meta["fake"]
                                     if isinstance(a, fx.Proxy) else a)
        with self._evaluation(), self.mode, torch.no_grad():
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            return target(*args, **kwargs)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Take calls and attributes as what they are: FX has patched both to record."""
        before, self.evaluating = self.evaluating, True
        try:
            yield
        finally:
            self.evaluating = before


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _number(value: Any) -> Any:
    return value.item() if _is_scalar(value) else value
