"""Functions of the numbers at one place, too plain for a file each: three tables.

`ACTIVATIONS` are smooth enough to be fused behind a convolution, and may have settings and
modules. `NUMBERS` are the other functions of one number, `PAIRS` those of two. A new one is
a line here and a line in ``tests/operators/pointwise.py``; what has spellings of another form
has a file of its own (`clamp`, `div`, `where`).

The name is PyTorch's own, and so are the spellings: ``torch.exp``, ``torch.special.exp2``,
``F.elu``, the methods ``exp`` and ``exp_``, and the aliases in `ALIASES`.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaconvert.operators.registry import call, operator, spelled, spelled_module


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


@dataclass(frozen=True)
class Activation:
    """A line of `ACTIVATIONS`.

    Args:
        name: of the operator, the function and its spellings.
        module: the type whose attributes are called as the settings.
        settings: the function's own, in its order, with their defaults.
        smooth: small changes stay small, so that it can be fused.
    """

    name: str
    module: type[nn.Module]
    settings: dict[str, Any] = field(default_factory=dict)
    smooth: bool = True


ACTIVATIONS = [
    Activation("relu", nn.ReLU),
    Activation("relu6", nn.ReLU6),
    Activation("sigmoid", nn.Sigmoid),
    Activation("silu", nn.SiLU),
    Activation("hardswish", nn.Hardswish),
    Activation("tanh", nn.Tanh),
    Activation("gelu", nn.GELU, {"approximate": "none"}),
    Activation("hardsigmoid", nn.Hardsigmoid),
    Activation("elu", nn.ELU, {"alpha": 1.0}),
    Activation("celu", nn.CELU, {"alpha": 1.0}),
    Activation("selu", nn.SELU),
    Activation("softplus", nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
    Activation("mish", nn.Mish),
    Activation("logsigmoid", nn.LogSigmoid),
    Activation("softsign", nn.Softsign),
    Activation("tanhshrink", nn.Tanhshrink),
    Activation("softshrink", nn.Softshrink, {"lambd": 0.5}),
    Activation("hardshrink", nn.Hardshrink, {"lambd": 0.5}, smooth=False),
    Activation("threshold", nn.Threshold, {"threshold": 0.0, "value": 0.0}, smooth=False),
]

# Python's own operators also do the arithmetic on shapes, before these are known.
NUMBERS: dict[str, Callable[..., Any]] = {
    "abs": abs, "neg": python.neg, "positive": python.pos, "bitwise_not": python.invert,
    **{name: getattr(torch, name) for name in words("""
       acos acosh asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2
       expm1 floor frac isfinite isinf isnan lgamma log log10 log1p log2 logical_not logit
       nan_to_num rad2deg reciprocal round rsqrt sign signbit sin sinc sinh sqrt square tan
       trunc""")}}

PAIRS: dict[str, Callable[..., Any]] = {
    "eq": python.eq, "ne": python.ne, "lt": python.lt, "le": python.le, "gt": python.gt,
    "ge": python.ge, "pow": python.pow, "floor_divide": python.floordiv, "remainder": python.mod,
    "bitwise_and": python.and_, "bitwise_or": python.or_, "bitwise_xor": python.xor,
    **{name: getattr(torch, name) for name in words("""
       atan2 copysign fmax fmin fmod heaviside hypot logaddexp logaddexp2 logical_and logical_or
       logical_xor xlogy""")}}

# Other names of the same function.
ALIASES: dict[str, list[Any]] = {
    "abs": [python.abs, torch.absolute, "absolute"],
    "neg": [python.neg, torch.negative, "negative"],
    "positive": [python.pos], "bitwise_not": [python.invert],
    "acos": [torch.arccos, "arccos"], "asin": [torch.arcsin, "arcsin"],
    "atan": [torch.arctan, "arctan"], "trunc": [torch.fix, "fix"],
    "floor_divide": [python.floordiv, python.ifloordiv],
    "pow": [python.pow, python.ipow, "__pow__"], "remainder": [python.mod, python.imod],
    "eq": [python.eq], "ne": [python.ne, torch.not_equal, "not_equal"],
    "lt": [python.lt, torch.less, "less"], "le": [python.le, torch.less_equal, "less_equal"],
    "gt": [python.gt, torch.greater, "greater"],
    "ge": [python.ge, torch.greater_equal, "greater_equal"],
    "bitwise_and": [python.and_, python.iand], "bitwise_or": [python.or_, python.ior],
    "bitwise_xor": [python.xor, python.ixor], "atan2": [torch.arctan2, "arctan2"],
    "sigmoid": [torch.special.expit],
}


def spellings(name: str) -> Iterator[Any]:
    """Yield every function and method that is PyTorch's of this name, in place or not."""
    found: dict[Any, None] = {}
    for home in (torch, F, torch.special):
        for spelling in (name, f"{name}_"):
            if hasattr(home, spelling):
                found[getattr(home, spelling)] = None
    yield from found
    yield from (n for n in (name, f"{name}_") if hasattr(Tensor, n))
    yield from (alias for alias in ALIASES.get(name, []) if alias not in found)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Compute PyTorch's ``{name}`` of each number."
    return function


def _add_activation(line: Activation) -> None:
    names, home = tuple(line.settings), F if hasattr(F, line.name) else torch
    compute = getattr(home, line.name)

    def canonical(x: Tensor, *values: Any, **settings: Any) -> Tensor:
        result: Tensor = compute(x, **dict(zip(names, values, strict=False)), **settings)
        return result

    def function(input: Any, *values: Any, inplace: bool = False, **named: Any) -> Any:
        given = dict(zip((*names, "inplace"), values, strict=False)) | named
        given.pop("inplace", None)
        if unknown := set(given) - set(names):
            raise TypeError(f"{line.name} has no setting {', '.join(sorted(unknown))}")
        return call(canonical, input, **{n: given.get(n, line.settings[n]) for n in names})

    def module(module: nn.Module, attribute: Any, input: Any) -> Any:
        return call(canonical, input, **{n: getattr(module, n) for n in names})

    operator(pixelwise=True, is_activation=line.smooth, channels_first=True)(
        _named(canonical, line.name))
    spelled(*spellings(line.name))(function)
    spelled_module(line.module)(module)


def _add_number(name: str, compute: Callable[..., Any]) -> None:
    def canonical(x: Tensor) -> Tensor:
        result: Tensor = compute(x)
        return result

    def function(input: Any) -> Any:
        return call(canonical, input)

    operator(pixelwise=True, channels_first=True)(_named(canonical, name))
    spelled(*spellings(name))(function)


def _add_pair(name: str, compute: Callable[..., Any]) -> None:
    def canonical(x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = compute(x, y)
        return result

    def function(input: Any, other: Any = None, *, exponent: Any = None, values: Any = None
                 ) -> Any:
        second = [y for y in (other, exponent, values) if y is not None]
        if len(second) != 1:
            raise TypeError(f"{name} takes two arguments")
        return call(canonical, input, second[0])

    operator(pixelwise=True, channels_first=True)(_named(canonical, name))
    spelled(*spellings(name))(function)


for _line in ACTIVATIONS:
    _add_activation(_line)
for _name, _compute in NUMBERS.items():
    _add_number(_name, _compute)
for _name, _compute in PAIRS.items():
    _add_pair(_name, _compute)
