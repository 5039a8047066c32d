"""How the loops of this backend are compiled: the one place with Numba's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])

# No "nnan", no "ninf": a difference that is not a number must propagate.
_REORDER = {"reassoc", "contract", "nsz"}


def loop(function: Loop) -> Loop:
    """Compile a loop that runs without the GIL; sums may be reordered, NaN stays NaN.

    Compiled code is kept in Numba's cache folder, so it is made once a machine.
    """
    return _compile(function, _REORDER)


def exact(function: Loop) -> Loop:
    """Compile a helper whose sums must stay in the written order; inlined into its callers."""
    return _compile(function, {"contract"})


def _compile(function: Loop, fastmath: set[str]) -> Loop:
    compile_it: Any = numba.njit(nogil=True, cache=True, fastmath=fastmath, error_model="numpy")
    compiled: Loop = compile_it(function)
    return compiled
