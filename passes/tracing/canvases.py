"""Canvases: tensors that a forward makes of numbers alone, and then writes a frame's maps into.

Before: ``z = torch.zeros(1, 7, 8, 8); z[:, :4] = y; z[:, 4:] = x; return 2 * z``, of which only
the writes were recorded: ``z`` is no proxy, so that ``2 * z`` was computed at once.
After: from its first write on, what is done with ``z``, or with a view of it, is recorded too.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils import _pytree as pytree

from deltaconvert.passes.functionalize import IN_PLACE_METHODS
from deltaconvert.passes.tracing.attributes import proxies, storage
from deltaconvert.passes.tracing.explain import line_of_user
from deltaconvert.passes.tracing.proxies import NotSupported

if TYPE_CHECKING:
    from deltaconvert.passes.tracing.tracer import Tracer

MAKE_MEMORY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
# Of attributes too, of which those that are tensors are views.
OF_SHAPES = frozenset({"__get__", "size", "dim", "numel", "stride"})


class Canvases(TorchFunctionMode):
    """While it is entered, tensors that are written into with proxies are proxies from then on."""

    def __init__(self, tracer: Tracer) -> None:
        """None is written into."""
        super().__init__()
        self._tracer = tracer
        self._written: dict[int, tuple[Tensor, fx.Proxy]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call, with proxies in the place of what was written into."""
        kwargs = kwargs or {}
        if self._tracer.evaluating or threading.get_ident() != self._tracer.thread:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if proxies([args, kwargs]):
            for receiver in _receivers(name, args, kwargs):
                self._note(receiver)
        elif self._written and name not in OF_SHAPES:
            args, kwargs = pytree.tree_map_only(Tensor, self.seen, (args, kwargs))
            if args and isinstance(args[0], fx.Proxy) and is_tensor_method_or_property(func):
                return getattr(args[0], name)(*args[1:], **kwargs)
        made = func(*args, **kwargs)
        if name in MAKE_MEMORY and isinstance(made, Tensor):
            made.zero_()  # as good as what lay there, and the same in each forward
        return made

    def seen(self, tensor: Tensor) -> Any:
        """Return a proxy of what was written into, be it by another view; others as they are.

        Raises:
            NotSupported: a view of it as other numbers.
        """
        if not self._written:
            return tensor
        with torch._C.DisableTorchFunction():  # these questions are no calls of the model's
            canvas, proxy = self._written.get(storage(tensor), (None, None))
            lies = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
            other = canvas is not None and (tensor.dtype is not canvas.dtype
                                            or tensor.is_conj() or tensor.is_neg())
        if proxy is None:
            return tensor
        if other:
            raise NotSupported("it looks at a tensor that maps are written into as another dtype, "
                               f"at {line_of_user(sys._getframe(1))}. Let it compute there what "
                               "it takes in that dtype from the maps")
        return proxy if tensor is canvas else self._tracer.create_proxy(
            "call_method", "as_strided", (proxy, *lies), {})

    def _note(self, tensor: Tensor) -> None:
        place = storage(tensor)
        if not place or place in self._written:
            return
        whole = tensor if tensor._base is None else tensor._base
        if whole.storage_offset() or not whole.is_contiguous():
            whole = whole.as_strided((whole.untyped_storage().nbytes() // whole.itemsize,), (1,), 0)
        node = fx.Tracer.create_arg(self._tracer, whole)
        self._written[place] = whole, self._tracer.create_proxy(
            "get_attr", node.target, (), {})  # type: ignore[union-attr]


def _receivers(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Return which tensors, not proxies, a call writes into."""
    writes = name in IN_PLACE_METHODS or (name.endswith("_") and not name.startswith("__"))
    given = [kwargs.get("out"), args[0] if args and (writes or kwargs.get("inplace")) else None]
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
