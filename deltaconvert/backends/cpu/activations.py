"""Activations on vectors of numbers, inside the fused loop."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

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
        slope: of ``leaky_relu``.
    """

    code: int = 0
    slope: float = 0.0


def compiled_activation(activation: tuple[object, ...] | None) -> Activation | None:
    """Translate ``(name, *numbers)``; nothing where the loops do not have it."""
    if activation is None:
        return Activation()
    name, *numbers = activation
    code = _CODES.get(str(name))
    if code is None or len(numbers) != (name == "leaky_relu"):
        return None
    return Activation(code, float(numbers[0]) if numbers else 0.0)  # type: ignore[arg-type]


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

    def at_least(self, number: float) -> Numbers:
        """Return the larger; NaN stays NaN."""
        below = self.builder.fcmp_ordered("<=", self.value, self.of(number))
        return self._made(self.builder.select(below, self.of(number), self.value))

    def at_most(self, number: float) -> Numbers:
        """Return the smaller; NaN stays NaN."""
        above = self.builder.fcmp_ordered(">", self.value, self.of(number))
        return self._made(self.builder.select(above, self.of(number), self.value))

    def floor(self) -> Numbers:
        """Round down."""
        kind, count = self.value.type, getattr(self.value.type, "count", 0)
        floor = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]),
            f"llvm.floor.v{count}f32" if count else "llvm.floor.f32")
        return self._made(self.builder.call(floor, [self.value]))

    def power_of_two(self) -> Numbers:
        """Return 2**n of whole numbers."""
        builder, kind = self.builder, self.value.type
        count = getattr(kind, "count", 0)
        bits = ir.VectorType(ir.IntType(32), count) if count else ir.IntType(32)

        def constant(number: int) -> Any:
            return ir.Constant(bits, [number] * count) if count else ir.Constant(bits, number)

        whole = builder.add(builder.fptosi(self.value, bits), constant(_BIAS))
        return self._made(builder.bitcast(builder.shl(whole, constant(_EXPONENT)), kind))


def exp(x: Numbers) -> Numbers:
    """e**x in float32, within 2 ulp; NaN stays NaN, what would overflow stays large.

    x = n ln 2 + r with |r| <= ln(2) / 2, Taylor's polynomial for e**r (within half a ulp
    there), and n added to the exponent's bits: no table and no branch.
    """
    x = x.at_least(_LOWEST).at_most(_HIGHEST)
    n = (x * _LOG2_E + 0.5).floor()
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = r * (1 / math.factorial(7)) + 1 / math.factorial(6)
    for degree in (5, 4, 3, 2, 1, 0):
        p = p * r + 1 / math.factorial(degree)
    return p * n.power_of_two()


def _relu(x: Numbers, slope: Numbers) -> Numbers:
    return x.at_least(0)


def _relu6(x: Numbers, slope: Numbers) -> Numbers:
    return x.at_least(0).at_most(6)


def _leaky_relu(x: Numbers, slope: Numbers) -> Numbers:
    positive = x.builder.fcmp_ordered(">", x.value, x.of(0))
    return Numbers(x.builder, x.builder.select(positive, x.value, (x * slope).value))


def _hardswish(x: Numbers, slope: Numbers) -> Numbers:
    return x * (x + 3).at_least(0).at_most(6) / 6


def _sigmoid(x: Numbers, slope: Numbers) -> Numbers:
    return Numbers(x.builder, x.of(1)) / (exp(x * -1) + 1)


def _silu(x: Numbers, slope: Numbers) -> Numbers:
    return x / (exp(x * -1) + 1)


def _hardsigmoid(x: Numbers, slope: Numbers) -> Numbers:
    return (x + 3).at_least(0).at_most(6) / 6


_FORMULAS = {"relu": _relu, "relu6": _relu6, "leaky_relu": _leaky_relu, "hardswish": _hardswish,
             "sigmoid": _sigmoid, "silu": _silu, "hardsigmoid": _hardsigmoid}
_CODES = {name: code for code, name in enumerate(_FORMULAS, 1)}


def apply(builder: Any, code: int, numbers: Any, slopes: Any) -> Any:
    """Generate an activation of a vector; code 0 is none."""
    if code == 0:
        return numbers
    formula = list(_FORMULAS.values())[code - 1]
    return formula(Numbers(builder, numbers), Numbers(builder, slopes)).value


CODES = range(len(_FORMULAS) + 1)
