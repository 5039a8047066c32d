"""Edges as flat arrays, the form in which compiled loops read and write them."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaconvert.backends.cpu.maps.storage import numbers_of
from deltaconvert.errors import UnsupportedError


class FlatMap(NamedTuple):
    """A channels-last map as one flat array; channel ``c`` of pixel ``p`` is ``p * step + c``.

    Args:
        data: float32, or bfloat16 in uint16 (see `storage`), from the first number of the first
            pixel to the last of the last.
        step: numbers from a pixel to the next: the channels, or more in a concatenation.
        channels: of the map.
        height, width: of one lane.
        lanes: how many.
    """

    data: np.ndarray
    step: int
    channels: int
    height: int
    width: int
    lanes: int

    @property
    def pixels(self) -> int:
        """Pixels of one lane."""
        return self.height * self.width


def flat_map(value: Tensor) -> FlatMap:
    """View ``[N, C, H, W]`` in channels-last memory as a `FlatMap`; nothing is copied.

    Vectors ``[N, C]`` are maps of one pixel.

    Raises:
        UnsupportedError: where the pixels do not lie one behind the other.
    """
    if value.dim() == 2:
        value = value[:, :, None, None]
    lanes, channels, height, width = value.shape
    sizes = (lanes, height, width)
    strides = (value.stride(0), value.stride(2), value.stride(3))
    step = next((s for size, s in zip(reversed(sizes), reversed(strides), strict=True)
                 if size > 1), channels)
    expected = (height * width * step, width * step, step)
    regular = all(size == 1 or a == b for size, a, b in zip(sizes, strides, expected, strict=True))
    if not regular or (channels > 1 and value.stride(1) != 1) or step < channels:
        raise UnsupportedError(
            f"a value of shape {tuple(value.shape)} with strides {value.stride()} is not in "
            "channels-last memory; the cpu backend needs it so.")
    numbers = (lanes * height * width - 1) * step + channels
    return FlatMap(flat(value.as_strided((numbers,), (1,))), step, channels, height, width, lanes)


def flat(tensor: Tensor) -> np.ndarray:
    """View a contiguous tensor as a 1-D array; see `numbers_of`."""
    return numbers_of(tensor.view(-1))


def rows_of(scratch: Tensor, *shape: int) -> np.ndarray:
    """View the start of a scratch buffer as float32 of a shape."""
    array: np.ndarray = scratch[: 4 * int(np.prod(shape))].view(torch.float32).view(*shape).numpy()
    return array


def like(data: np.ndarray, scratch: Tensor, *shape: int) -> np.ndarray:
    """View the start of a scratch buffer as an array of a shape, of the type of another."""
    size = int(np.prod(shape))
    return flat(scratch)[: data.itemsize * size].view(data.dtype).reshape(shape)


def ints(scratch: Tensor, size: int) -> np.ndarray:
    """View the start of a scratch buffer as int32."""
    return flat(scratch[: 4 * size].view(torch.int32))


def longs(scratch: Tensor, *shape: int) -> np.ndarray:
    """View the start of a scratch buffer as int64 of a shape."""
    size = int(np.prod(shape))
    return flat(scratch[: 8 * size].view(torch.int64)).reshape(shape)


def floats_at(address: int, *shape: int) -> np.ndarray:
    """View memory as float32 of a shape."""
    numbers = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(numbers).reshape(shape)


def ints_at(address: int, size: int) -> np.ndarray:
    """View memory as int32."""
    return np.ctypeslib.as_array((ctypes.c_int32 * size).from_address(address))
