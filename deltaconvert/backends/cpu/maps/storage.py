"""Numbers as maps hold them: float32, or bfloat16 as its upper 16 bits; computed is in float32.

A loop reads and writes maps through `load`, `store` and `rounded`, which the array's type
chooses when the loop is compiled. So there is one loop for both kinds of map.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled helpers: Numba infers their types)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

_BITS, _FLOAT = ir.IntType(32), ir.FloatType()
STORED = (torch.float32, torch.bfloat16)  # what maps of this backend may hold


def numbers_of(tensor: Tensor) -> np.ndarray:
    """View a tensor as an array: bfloat16 as uint16, whatever NumPy has as it is."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray = tensor.numpy()
    return array


def _widen(typing: Any, bits: Any) -> Any:
    """Return the float32 that these upper 16 bits are."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _BITS), _BITS(16)), _FLOAT)

    return types.float32(types.uint16), codegen


def _narrow(typing: Any, number: Any) -> Any:
    """Return the upper 16 bits of a float32, rounded to nearest even; NaN stays NaN."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _BITS)
        upper = builder.lshr(bits, _BITS(16))
        half = builder.add(builder.and_(upper, _BITS(1)), _BITS(0x7FFF))
        nearest = builder.lshr(builder.add(bits, half), _BITS(16))
        quiet = builder.or_(upper, _BITS(0x40))
        no_number = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(no_number, quiet, nearest), ir.IntType(16))

    return types.uint16(types.float32), codegen


# Written in LLVM's own operations, of which it makes vectors; of Numba's it makes none.
widen: Any = intrinsic(_widen)
narrow: Any = intrinsic(_narrow)


def load(data: Any, i: Any) -> Any:
    """Return number ``i`` of a map as float32."""
    raise NotImplementedError  # compiled code only


def store(data: Any, i: Any, number: Any) -> None:
    """Write a float32 to place ``i`` of a map, rounded to what it holds."""
    raise NotImplementedError


def rounded(data: Any, number: Any) -> Any:
    """Return a float32 as a map like ``data`` would hold it."""
    raise NotImplementedError


def _is_bfloat16(data: Any) -> bool:
    return bool(data.dtype == types.uint16)


@overload(load, inline="always")
def _load(data, i):
    if _is_bfloat16(data):
        return lambda data, i: widen(data[i])
    return lambda data, i: data[i]


@overload(store, inline="always")
def _store(data, i, number):
    if _is_bfloat16(data):
        def narrowed(data, i, number):
            data[i] = narrow(number)
        return narrowed

    def as_it_is(data, i, number):
        data[i] = number
    return as_it_is


@overload(rounded, inline="always")
def _rounded(data, number):
    if _is_bfloat16(data):
        return lambda data, number: widen(narrow(number))
    return lambda data, number: number
