"""Watch counters: whether a forward looks at what it counts, and goes by that.

Before: ``self.frame += 1; if self.frame % 30 == 0: ...``, of which two forwards are alike.
After: that `frame` was compared.

Part of `find_state`. In one more forward the numbers know when they are looked at, and so does
what is computed from them. Those that are computed with a frame's are seen in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

ARITHMETIC = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "and", "or", "xor",
              "lshift", "rshift")
UNARY = ("__neg__", "__pos__", "__abs__", "__invert__")
LOOKS = ("__bool__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__",
         "__index__", "__int__", "__float__", "__str__", "__repr__", "__format__")
TENSOR_LOOKS = frozenset({"__bool__", "__int__", "__float__", "__index__", "item", "tolist",
                          "numpy", "equal", "allclose", "is_nonzero", "__contains__", "__array__"})


class Watch(TorchFunctionMode):
    """While it is entered, ``looked`` tells whether anybody looked at the numbers.

    Args:
        tensors: those that count.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        """Nobody has looked."""
        super().__init__()
        self.looked = False
        self._counts = {id(tensor): tensor for tensor in tensors}

    def number(self, value: Any) -> Any:
        """Return a number that notes when it is looked at."""
        return _watched(type(value), self)(value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call, and follow what is computed from counters alone."""
        given = pytree.tree_leaves((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if any(id(leaf) in self._counts for leaf in given):
            self.looked |= getattr(func, "__name__", "") in TENSOR_LOOKS
            self._counts.update({id(leaf): leaf for leaf in pytree.tree_leaves(result)
                                 if isinstance(leaf, Tensor)})
        return result


def _watched(kind: type, watch: Watch) -> Any:
    """Make a subclass of ``int`` or ``float`` whose results are watched too."""
    def computed(name: str) -> Callable[..., Any]:
        def method(self: Any, *others: Any) -> Any:
            result = getattr(kind, name)(self, *others)
            return watch.number(result) if type(result) in (int, float) else result
        return method

    def looked_at(name: str) -> Callable[..., Any]:
        def method(self: Any, *others: Any) -> Any:
            watch.looked = True
            return getattr(kind, name)(self, *others)
        return method
    names = [f"__{side}{name}__" for name in ARITHMETIC for side in ("", "r")]
    methods = {name: computed(name) for name in (*names, *UNARY) if hasattr(kind, name)}
    methods |= {name: looked_at(name) for name in LOOKS if hasattr(kind, name)}
    return type(f"watched_{kind.__name__}", (kind,), methods)
