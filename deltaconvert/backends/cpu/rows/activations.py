"""Activations on vectors of numbers, inside the fused loop.

Those of short formulas are part of the end of a row; the longer ones, `curves`, are a pass of
their own, which is compiled where a network has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils
from torch import Tensor

_LOG2_E = 1.44269504
_LN2_HIGH = 0.693359375  # few bits, so that multiples of it are exact
_LN2_LOW = -2.12194440e-4
_LOWEST, _HIGHEST = -87.0, 88.0  # beyond, 2**n is no normal float32
_EXPONENT, _BIAS = 23, 127  # of a float32
_FUSE = ("contract",)


class Activation(NamedTuple):
    """An activation as the loops know it.

    Args:
        code: 0 for none.
        first: the slope of ``leaky_relu``, ``[C]`` where each channel has its own; or the lower
            end of ``clamp``.
        second: the upper end.
    """

    code: int = 0
    first: float | Tensor = 0.0
    second: float = 0.0


def compiled_activation(activation: tuple[object, ...] | None) -> Activation | None:
    """Translate ``(name, *numbers)``; nothing where the loops do not have it."""
    if activation is None:
        return Activation()
    name, *numbers = activation
    code = _CODES.get("leaky_relu" if name == "prelu" else str(name))
    if name == "clamp":
        numbers = [end if number is None else number
                   for number, end in zip(numbers, (-math.inf, math.inf), strict=True)]
        if any(math.isnan(number) for number in numbers if isinstance(number, float)):
            return None
    if code is None or len(numbers) != _SETTINGS.get(str(name), 0):
        return None
    if not all(isinstance(number, int | float | Tensor) for number in numbers):
        return None  # a slope that changes from frame to frame
    return Activation(code, *numbers)  # type: ignore[arg-type]


class Numbers:
    """float32 numbers or vectors of them, for formulas that read as such."""

    def __init__(self, builder: Any, value: Any) -> None:
        """Wrap a value that the builder computed."""
        self.builder, self.value = builder, value

    def _made(self, value: Any) -> Numbers:
        return Numbers(self.builder, value)

    def of(self, number: float) -> Any:
        """Return a constant of the same shape."""
        kind = self.value.type
        count = getattr(kind, "count", 0)
        return ir.Constant(kind, [number] * count) if count else ir.Constant(kind, number)

    def _other(self, other: Numbers | float) -> Any:
        return other.value if isinstance(other, Numbers) else self.of(other)

    def __add__(self, other: Numbers | float) -> Numbers:
        """Add; with a product before it, maybe in one instruction."""
        return self._made(self.builder.fadd(self.value, self._other(other), flags=_FUSE))

    def __sub__(self, other: Numbers | float) -> Numbers:
        """Subtract."""
        return self._made(self.builder.fsub(self.value, self._other(other), flags=_FUSE))

    def __mul__(self, other: Numbers | float) -> Numbers:
        """Multiply."""
        return self._made(self.builder.fmul(self.value, self._other(other), flags=_FUSE))

    def __truediv__(self, other: Numbers | float) -> Numbers:
        """Divide."""
        return self._made(self.builder.fdiv(self.value, self._other(other)))

    def at_least(self, other: Numbers | float) -> Numbers:
        """Return the larger; NaN stays NaN."""
        below = self.builder.fcmp_ordered("<=", self.value, self._other(other))
        return self._made(self.builder.select(below, self._other(other), self.value))

    def at_most(self, other: Numbers | float) -> Numbers:
        """Return the smaller; NaN stays NaN."""
        above = self.builder.fcmp_ordered(">", self.value, self._other(other))
        return self._made(self.builder.select(above, self._other(other), self.value))

    def magnitude(self) -> Numbers:
        """Return it without its sign."""
        return self._by_intrinsic("fabs")

    def where_above(self, bound: float, yes: Numbers | float, no: Numbers | float) -> Numbers:
        """Choose by whether it is more than a bound; NaN is not."""
        above = self.builder.fcmp_ordered(">", self.value, self.of(bound))
        return self._made(self.builder.select(above, self._other(yes), self._other(no)))

    def floor(self) -> Numbers:
        """Round down."""
        return self._by_intrinsic("floor")

    def _by_intrinsic(self, name: str) -> Numbers:
        kind, count = self.value.type, getattr(self.value.type, "count", 0)
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]),
            f"llvm.{name}.v{count}f32" if count else f"llvm.{name}.f32")
        return self._made(self.builder.call(function, [self.value]))

    def _bits(self) -> tuple[Any, Callable[[int], Any]]:
        """Return the type of its bits, and what makes constants of it."""
        count = getattr(self.value.type, "count", 0)
        bits = ir.VectorType(ir.IntType(32), count) if count else ir.IntType(32)
        return bits, lambda number: ir.Constant(bits, [number] * count if count else number)

    def upper_half(self) -> Numbers:
        """Return it with so few bits that its square is exact."""
        builder, (bits, constant) = self.builder, self._bits()
        kept = builder.and_(builder.bitcast(self.value, bits), constant(0xFFFFF000))
        return self._made(builder.bitcast(kept, self.value.type))

    def power_of_two(self) -> Numbers:
        """Return 2**n of whole numbers."""
        builder, (bits, constant) = self.builder, self._bits()
        whole = builder.add(builder.fptosi(self.value, bits), constant(_BIAS))
        return self._made(builder.bitcast(builder.shl(whole, constant(_EXPONENT)),
                                          self.value.type))


def exp(x: Numbers, rest: Numbers | float = 0.0) -> Numbers:
    """e**(x + rest) in float32, within 2 ulp; NaN stays NaN, what would overflow stays large.

    The rest is small: what ``x`` has no bits for.

    x = n ln 2 + r with |r| <= ln(2) / 2, Taylor's polynomial for e**r (within half a ulp
    there), and n added to the exponent's bits: no table and no branch.
    """
    x = x.at_least(_LOWEST).at_most(_HIGHEST)
    n = (x * _LOG2_E + 0.5).floor()
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    if rest != 0.0:
        r = r + rest
    p = r * (1 / math.factorial(7)) + 1 / math.factorial(6)
    for degree in (5, 4, 3, 2, 1, 0):
        p = p * r + 1 / math.factorial(degree)
    return p * n.power_of_two()


Setting = Callable[[int], Numbers]


def _relu(x: Numbers, setting: Setting) -> Numbers:
    return x.at_least(0)


def _relu6(x: Numbers, setting: Setting) -> Numbers:
    return x.at_least(0).at_most(6)


def _leaky_relu(x: Numbers, setting: Setting) -> Numbers:
    positive = x.builder.fcmp_ordered(">", x.value, x.of(0))
    return Numbers(x.builder, x.builder.select(positive, x.value, (x * setting(0)).value))


def _hardswish(x: Numbers, setting: Setting) -> Numbers:
    return x * (x + 3).at_least(0).at_most(6) / 6


def _sigmoid(x: Numbers, setting: Setting) -> Numbers:
    return Numbers(x.builder, x.of(1)) / (exp(x * -1) + 1)


def _silu(x: Numbers, setting: Setting) -> Numbers:
    return x / (exp(x * -1) + 1)


def _hardsigmoid(x: Numbers, setting: Setting) -> Numbers:
    return (x + 3).at_least(0).at_most(6) / 6


def _clamp(x: Numbers, setting: Setting) -> Numbers:
    return x.at_least(setting(0)).at_most(setting(1))


_FORMULAS = {"relu": _relu, "relu6": _relu6, "leaky_relu": _leaky_relu, "hardswish": _hardswish,
             "sigmoid": _sigmoid, "silu": _silu, "hardsigmoid": _hardsigmoid,
             "clamp": _clamp}
_SETTINGS = {"leaky_relu": 1, "prelu": 1, "clamp": 2}
_CODES = {name: code for code, name in enumerate(_FORMULAS, 1)}


def apply(builder: Any, code: int, numbers: Any, settings: Callable[[int], Any]) -> Any:
    """Generate an activation of a vector; code 0 is none. Settings are loaded where it has any."""
    if code == 0:
        return numbers
    formula = list(_FORMULAS.values())[code - 1]
    return formula(Numbers(builder, numbers), lambda i: Numbers(builder, settings(i))).value


CODES = range(len(_FORMULAS) + 1)
