"""How many threads PyTorch takes for what the calling thread asks of it, and for nobody else."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def set_own_threads(count: int) -> None:
    """Have PyTorch take so many threads for the calls of this thread.

    ``torch.set_num_threads`` also sets what a thread begins with that calls PyTorch for the first
    time just then, and keeps. So the libraries behind it are told, whose numbers are a thread's
    own; where they are not to be found (Windows), nothing is changed.
    """
    torch.get_num_threads()  # a thread's first call to PyTorch sets them
    for tell in _libraries():
        tell(count)


@cache
def _libraries() -> list[Callable[[int], Any]]:
    loaded = ctypes.CDLL(torch._C.__file__)  # a look-up in it goes on in all that it was linked to
    # (MKL's name in small letters is Fortran's, and takes an address.)
    return [getattr(loaded, name) for name in ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
            if hasattr(loaded, name)]
