"""The formulas of activations, number by number, against the same in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import types
from numba.extending import intrinsic

from deltaconvert.backends.cpu.rows.curves import CODES, bend, compiled_curve

# With what each is in float64, free of cancellation, and how many ulp it may be off.
CURVES: dict[tuple[Any, ...], tuple[Any, float]] = {
    ("tanh",): (torch.tanh, 2),
    ("gelu", "none"): (lambda x: x * torch.special.erfc(-x / 2**0.5) / 2, 6),
    # The error of a large exponent's last bit, which is in the definition.
    ("gelu", "tanh"): (lambda x: x * torch.sigmoid(
        2 * (2 / torch.pi)**0.5 * (x + 0.044715 * x**3)), 200),
    ("elu", 1.5): (lambda x: F.elu(x, 1.5), 3),
    ("celu", 1.5): (lambda x: F.celu(x, 1.5), 3),
    ("selu",): (F.selu, 3),
    ("softplus", 2.0, 15.0): (lambda x: torch.where(
        2 * x > 15, x, torch.log1p(torch.exp(2 * x)) / 2), 3),
    ("logsigmoid",): (lambda x: x.clamp(max=0) - torch.log1p(torch.exp(-x.abs())), 3),
    ("mish",): (lambda x: x * _tanh_of_log(torch.exp(x.clamp(max=40))), 4),
    ("softsign",): (F.softsign, 2),
}
LEAST = 1e-35  # smaller results may be any such number


def _tanh_of_log(e: torch.Tensor) -> torch.Tensor:
    return e * (e + 2) / (e * (e + 2) + 2)


def _bent(typing: Any, number: Any, code: Any, first: Any, second: Any) -> Any:
    """The curve of one number."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, code, *settings = args
        result = number
        for curve in CODES:
            bent = bend(builder, curve, number, settings)
            same = builder.icmp_signed("==", code, code.type(curve))
            result = builder.select(same, bent, result)
        return result

    return types.float32(types.float32, types.int64, types.float32, types.float32), codegen


bent = intrinsic(_bent)


@numba.njit
def bent_all(x, code, first, second):
    out = np.empty_like(x)
    for i in range(x.shape[0]):
        out[i] = bent(x[i], code, first, second)
    return out


def ours(activation: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
    curve = compiled_curve(activation)
    assert curve is not None
    return bent_all(x, curve.code, np.float32(curve.first), np.float32(curve.second))


@pytest.mark.parametrize("activation", CURVES, ids=str)
def test_accuracy(activation: tuple[Any, ...]) -> None:
    powers = 10.0 ** np.linspace(-30, 37, 1000)
    x = np.concatenate([np.linspace(-100, 100, 40001), np.linspace(-3, 3, 40001),
                        np.linspace(-0.01, 0.01, 2001), powers, -powers]).astype(np.float32)
    true, allowed = CURVES[activation]
    expected = true(torch.from_numpy(x).double()).numpy()
    far = np.abs(ours(activation, x) - expected)
    counts = np.abs(expected) > LEAST
    ulp = np.spacing(np.abs(expected).astype(np.float32))
    assert (far / ulp)[counts].max() < allowed
    assert far[~counts].max() < 2 * LEAST


@pytest.mark.parametrize("activation", CURVES, ids=str)
def test_what_is_not_a_number(activation: tuple[Any, ...]) -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    name, *settings = activation
    function = partial(F.gelu, approximate=settings[0]) if name == "gelu" else CURVES[activation][0]
    if name == "mish":
        function = F.mish
    expected = function(torch.from_numpy(x)).numpy()
    if activation == ("gelu", "none"):
        expected[1] = np.inf  # PyTorch has NaN, by infinity times 0
    np.testing.assert_allclose(ours(activation, x), expected, atol=LEAST)


def test_some_have_no_formula() -> None:
    assert compiled_curve(("tanhshrink",)) is None
