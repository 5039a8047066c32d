"""Activations of longer formulas, as vectors, within a few ulp of float32.

Numbers of polynomials are fitted: the largest relative error is least. NaN stays NaN, and
infinities give what PyTorch gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deltaconvert.backends.cpu.rows.activations import Numbers, exp

_NEAR = 0.65  # of tanh: up to here a polynomial
_TANH = (-0.0055151544, 0.02046941, -0.05368802, 0.1333083, -0.3333326)
_ATANH = (0.14005996, 0.14000902, 0.20010763, 0.3333321)
# Of a normal distribution's tail, times e**(a**2 / 2): a fraction.
_TAIL = ((0.0040201806, 0.039984107, 0.18130657, 0.43568605, 0.5),
         (0.010076955, 0.10023268, 0.46437982, 1.1944834, 1.6692570, 1.0))
_NO_TAIL = 13.1  # beyond, its tail is no normal float32
_SURE = -87.0  # below, e**x is none
_LARGE = 40.0  # above, 1 is lost beside e**x
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class Curve(NamedTuple):
    """A curve as the loops know it: its code and its settings, at most two."""

    code: int
    first: float = 0.0
    second: float = 0.0


def compiled_curve(activation: tuple[object, ...]) -> Curve | None:
    """Translate ``(name, *settings)``; nothing where there is no formula."""
    name, *settings = activation
    if name == "gelu":
        name, settings = f"gelu, {settings[0]}", []
    numbers = [float(s) for s in settings if isinstance(s, int | float)]
    known = str(name) in _FORMULAS and len(numbers) == len(settings)
    return Curve(list(_FORMULAS).index(str(name)), *numbers) if known else None


def _polynomial(x: Numbers, factors: Sequence[float]) -> Numbers:
    """Return a polynomial; the factor of its highest power comes first."""
    total = x * factors[0] + factors[1]
    for factor in factors[2:]:
        total = total * x + factor
    return total


def _one(x: Numbers) -> Numbers:
    return Numbers(x.builder, x.of(1))


def _tanh(x: Numbers, *_: Numbers) -> Numbers:
    squared, size = x * x, x.magnitude()
    near = x * squared * _polynomial(squared, _TANH) + x
    decayed = exp(size * -2)
    far = (_one(x) - decayed) / (decayed + 1)
    return size.where_above(_NEAR, x.where_above(0, far, far * -1), near)


def _less_one(x: Numbers) -> Numbers:
    """e**x - 1 of what is not positive."""
    series = x * _polynomial(x, [1 / math.factorial(k) for k in range(10, 0, -1)])
    return x.where_above(-0.7, series, exp(x) - 1)


def _log_one_more(x: Numbers) -> Numbers:
    """log(1 + x) for x from 0 to 1: twice the artanh of x / (2 + x)."""
    s = x / (x + 2)
    squared = s * s
    return (s * squared * _polynomial(squared, _ATANH) + s) * 2


def _tail(size: Numbers) -> Numbers:
    """Return how much of a normal distribution is beyond some of its standard deviations.

    The square that is in the exponent has more bits than there are: its rest goes with it.
    """
    half = size.upper_half()
    decayed = exp(half * half * -0.5, (size - half) * (size + half) * -0.5)
    above, below = (_polynomial(size, factors) for factors in _TAIL)
    return size.where_above(_NO_TAIL, 0, decayed * above / below)


def _gelu(x: Numbers, *_: Numbers) -> Numbers:
    size = x.magnitude().at_most(_NO_TAIL + 1)
    tail = _tail(size)
    return x.where_above(0, x - size * tail, x * tail)


def _gelu_by_tanh(x: Numbers, *_: Numbers) -> Numbers:
    scale = 2 * math.sqrt(2 / math.pi)
    y = x * (x * x * (scale * 0.044715) + scale)
    return x * y.where_above(_SURE, _one(x) / (exp(y * -1) + 1), 0)


def _elu(x: Numbers, alpha: Numbers, *_: Numbers) -> Numbers:
    return x.where_above(0, x, _less_one(x) * alpha)


def _celu(x: Numbers, alpha: Numbers, *_: Numbers) -> Numbers:
    return x.where_above(0, x, _less_one(x / alpha) * alpha)


def _selu(x: Numbers, *_: Numbers) -> Numbers:
    return x.where_above(0, x * _SELU_SCALE, _less_one(x) * (_SELU_ALPHA * _SELU_SCALE))


def _log_logistic(x: Numbers) -> Numbers:
    """log(1 + e**x)."""
    return x.at_least(0) + _log_one_more(exp(x.magnitude() * -1))


def _softplus(x: Numbers, beta: Numbers, threshold: Numbers) -> Numbers:
    y = x * beta
    above = x.builder.fcmp_ordered(">", y.value, threshold.value)
    soft = _log_logistic(y) / beta
    return Numbers(x.builder, x.builder.select(above, x.value, soft.value))


def _logsigmoid(x: Numbers, *_: Numbers) -> Numbers:
    return x.at_most(0) - _log_one_more(exp(x.magnitude() * -1))


def _mish(x: Numbers, *_: Numbers) -> Numbers:
    """x tanh(log(1 + e**x)), of which the tanh is a fraction."""
    power = exp(x.at_most(_LARGE))
    n = power * (power + 2)
    return x * x.where_above(_SURE, n / (n + 2), 0)


def _softsign(x: Numbers, *_: Numbers) -> Numbers:
    return x / (x.magnitude() + 1)


_FORMULAS: dict[str, Callable[..., Numbers]] = {
    "tanh": _tanh, "gelu, none": _gelu, "gelu, tanh": _gelu_by_tanh, "elu": _elu, "celu": _celu,
    "selu": _selu, "softplus": _softplus, "logsigmoid": _logsigmoid, "mish": _mish,
    "softsign": _softsign}
CODES = range(len(_FORMULAS))


def bend(builder: Any, code: int, numbers: Any, settings: Sequence[Any]) -> Any:
    """Generate a curve of a vector, whose settings are vectors too."""
    given = [Numbers(builder, numbers), *(Numbers(builder, s) for s in settings)]
    return list(_FORMULAS.values())[code](*given).value
