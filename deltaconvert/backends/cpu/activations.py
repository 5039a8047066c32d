"""Activations on one pixel's channels, in place, inside the fused loop."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.jit import exact, loop

_CODES = {"relu": 1, "relu6": 2, "leaky_relu": 3, "hardswish": 4, "sigmoid": 5, "silu": 6}
_RELU, _RELU6, _LEAKY_RELU, _HARDSWISH, _SIGMOID, _SILU = _CODES.values()

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that multiples of it are exact
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)  # beyond, 2**n is no normal float32
_ZERO, _HALF, _ONE, _THREE, _SIX = (np.float32(v) for v in (0, 0.5, 1, 3, 6))
# Taylor coefficients of exp: within half a ulp at |r| <= ln(2) / 2.
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720, 5040))


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
    if code is None or len(numbers) != (code == _LEAKY_RELU):
        return None
    return Activation(code, float(numbers[0]) if numbers else 0.0)  # type: ignore[arg-type]


@exact
def exp(x):
    """e**x in float32, within 2 ulp; NaN stays NaN, what would overflow stays large.

    x = n ln 2 + r with |r| <= ln(2) / 2, a polynomial for e**r, and n added to the
    exponent's bits: no table and no branch, so that it runs on whole vectors.
    """
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _C7 * r + _C6
    p = p * r + _C5
    p = p * r + _C4
    p = p * r + _C3
    p = p * r + _C2
    p = p * r + _ONE
    p = p * r + _ONE
    bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    return p * np.int32(bits).view(np.float32)


@loop
def activate(row, code, slope):
    """Apply an activation to a row, in place. Comparisons are such that NaN stays NaN."""
    size = row.shape[0]
    if code == _RELU:
        for c in range(size):
            row[c] = _ZERO if row[c] <= _ZERO else row[c]
    elif code == _RELU6:
        for c in range(size):
            v = _ZERO if row[c] <= _ZERO else row[c]
            row[c] = _SIX if v > _SIX else v
    elif code == _LEAKY_RELU:
        for c in range(size):
            row[c] = row[c] if row[c] > _ZERO else row[c] * slope
    elif code == _HARDSWISH:
        for c in range(size):
            v = row[c] + _THREE
            v = _ZERO if v <= _ZERO else v
            v = _SIX if v > _SIX else v
            row[c] = row[c] * v / _SIX
    elif code == _SIGMOID:
        for c in range(size):
            row[c] = _ONE / (_ONE + exp(-row[c]))
    elif code == _SILU:
        for c in range(size):
            row[c] = row[c] / (_ONE + exp(-row[c]))
