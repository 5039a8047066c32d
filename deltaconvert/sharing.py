"""What follows from weights alone: made once, and kept for as long as somebody needs it.

Programs of one model for several sizes of frames derive the same numbers from the same weights.
What was made is found again by what it was made of: by the numbers themselves, whoever holds them.
So weights that are written, in whatever way, are other weights, and nothing has to be told.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Made = TypeVar("Made")
Given = ParamSpec("Given")

_made: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
# Tensors that were made here: nobody writes into them, so that they need not be read again.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
MOST_TOGETHER = 1 << 26  # bytes that `read_together` copies at once


class _Read(threading.local):
    """What is known of tensors while this thread is in `read_together`, by where they lie."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, Hashable] = {}


_read = _Read()


@contextmanager
def read_together(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Read tensors by few copies to the host, for a block in which nobody writes into them.

    From a device they would be waited for one by one, and as often as something is made of them.
    """
    groups: dict[Hashable, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if _is_readable(tensor):
            groups[tensor.device, tensor.dtype].append(tensor.detach())
    try:
        for group in groups.values():
            for some in _parts(group):
                held = torch.cat([t.resolve_neg().reshape(-1) for t in some]).cpu()
                for tensor, numbers in zip(some, held.split([t.numel() for t in some]),
                                           strict=True):
                    _read.numbers[_place(tensor)] = _digest(numbers)
        yield
    finally:
        _read.numbers.clear()


def _parts(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if part and held + tensor.nbytes > MOST_TOGETHER:
            yield part
            part, held = [], 0
        part.append(tensor)
        held += tensor.nbytes
    yield part


def _place(tensor: Tensor) -> Hashable:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape),
            tensor.stride())


def shared(parts: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """Return what was made of such parts, or make it.

    Args:
        parts: all that it depends on: what is hashable, and tensors for their numbers.
        make: returns an object, or a tensor, of which nobody writes into and whose memory is
            nobody else's.
    """
    key = _key(parts)
    if key is None:
        return make()
    found = _made.get(key)
    if found is None:  # another thread may be as far
        found = _made.setdefault(key, make())
        if isinstance(found, Tensor):
            _known[found] = key
    made: Made = found
    return made


def made_once(function: Callable[Given, Tensor]) -> Callable[Given, Tensor]:
    """Decorate what derives a tensor, in memory of its own, from tensors and settings alone."""
    @functools.wraps(function)
    def derive(*args: Given.args, **kwargs: Given.kwargs) -> Tensor:
        return shared((function, *args, *sorted(kwargs.items())),
                      lambda: function(*args, **kwargs))

    return derive


def equal_one(tensor: Tensor) -> Tensor:
    """Return the tensor that was given first of all that are equal to this; nobody writes into it.
    """
    return tensor if tensor in _known else shared((equal_one, tensor, tensor.stride()),
                                                  lambda: tensor)


def _key(parts: Any) -> Hashable | None:
    """Return what parts are known by; nothing where a tensor's numbers cannot be read."""
    if isinstance(parts, (tuple, list)):
        keys = tuple(_key(part) if isinstance(part, (tuple, list, Tensor)) else (part,)
                     for part in parts)
        return None if None in keys else keys
    known: Hashable | None = _known.get(parts)
    return known or _numbers(parts)


def _numbers(tensor: Tensor) -> Hashable | None:
    if not _is_readable(tensor):
        return None
    digest = (_read.numbers.get(_place(tensor)) if _read.numbers else None) or _digest(
        tensor.detach().cpu().resolve_neg().contiguous())
    return tensor.dtype, tensor.device, tuple(tensor.shape), digest


def _is_readable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not (
        tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.is_complex())


def _digest(held: Tensor) -> bytes:
    # Read where they lie: each call of PyTorch is counted by `annotate`.
    numbers = (ctypes.c_char * (held.numel() * held.element_size())).from_address(held.data_ptr())
    return hashlib.sha256(numbers).digest()
