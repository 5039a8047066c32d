"""How the loops of this backend are compiled: the one place with Numba's options."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

_NEWEST_KNOWN_NUMBA = (0, 68)
_EntryFunction: Any = CFunc
if numba.version_info.short <= _NEWEST_KNOWN_NUMBA:  # another may have other insides
    from deltaconvert.backends.cpu.compiling.library import EntryFunction as _EntryFunction

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

_SILENT_SECONDS = 1.0
# No "nnan", no "ninf": a difference that is not a number must propagate.
_REORDER = {"reassoc", "contract", "nsz"}
_OPTIONS: dict[str, Any] = {"fastmath": _REORDER, "error_model": "numpy"}
_Dispatcher: Any = CPUDispatcher


class Loop(_Dispatcher):
    """A loop for compiled code, which may be called from Python as well."""

    @functools.cached_property
    def _from_python(self) -> Any:
        compiled: Any = numba.njit(nogil=True, **_OPTIONS)(self.py_func)
        _keep(compiled)
        return compiled

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Settle which code a call is of: not one for each number that is written out."""
        return super().get_call_template([types.unliteral(a) for a in args],
                                         {k: types.unliteral(a) for k, a in kws.items()})

    def __call__(self, *args: Any) -> Any:
        """Compile it by itself, which takes a while, and call it."""
        return self._from_python(*args)


def loop(function: Function) -> Function:
    """Make a part of entries; sums may be reordered, NaN stays NaN.

    It is compiled with each entry that calls it; see `library`.
    """
    made: Any = Loop(function, targetoptions={"nopython": True, "no_cpython_wrapper": True,
                                              "no_cfunc_wrapper": True, **_OPTIONS})
    part: Function = made
    return part


class Entry:
    """A compiled function ``(int, int) -> None`` that is called by its address."""

    def __init__(self, function: Callable[[int, int], None]) -> None:
        """Compile nothing yet."""
        self.function = function
        self._lock = threading.Lock()
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Where it is; compiled, or read from the cache folder, when first asked."""
        with self._lock:
            if self._compiled is None:
                compiled, kept = self._uncompiled()
                with _said_if_slow(kept), _no_garbage_collected():
                    try:
                        compiled.compile()
                    except OSError:  # a full disk
                        compiled._cache = NullCache()
                        compiled.compile()
                self._compiled = compiled
            address: int = self._compiled.address
            return address

    @functools.cached_property
    def folder(self) -> Path | None:
        """Where its code is kept; nothing where no folder can be written to."""
        compiled, kept = self._uncompiled()
        return Path(compiled._cache.cache_path) if kept else None

    def _uncompiled(self) -> tuple[Any, bool]:
        """Return what is to be compiled, and whether it can be kept."""
        signature = normalize_signature(types.void(types.intp, types.intp))
        function: Any = _EntryFunction(self.function, signature, locals={},
                                       options={"error_model": "numpy"})
        return function, _keep(function)

    def __call__(self, address: int, number: int) -> None:
        """Call it from Python; the GIL is released meanwhile."""
        self._from_python(address, number)

    @functools.cached_property
    def _from_python(self) -> Any:
        return SIGNATURE(self.address)


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Leave garbage for later: a compiler makes so many objects that looking takes a fifth."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _said_if_slow(kept: bool) -> Iterator[None]:
    """Say on stderr, once a process, what takes so long, and whether it will again."""
    timer = threading.Timer(_SILENT_SECONDS, _say, [kept])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _say(kept: bool) -> None:
    # Logging says a warning on stderr, unless a program wants it elsewhere or not at all.
    logger.warning("deltaconvert: compiling loops for this processor %s",
                   "(cached for the next start)" if kept else
                   "(at every start, for no folder can be written to: name one in NUMBA_CACHE_DIR)")


SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t)


def entry(function: Callable[[int, int], None]) -> Entry:
    """Make an `Entry` of a function that takes the address of its arguments and a number."""
    return Entry(function)


def _stamp(folder: Path) -> tuple[tuple[str, float, int], ...]:
    return tuple((str(f.relative_to(folder)), f.stat().st_mtime, f.stat().st_size)
                 for f in sorted(folder.rglob("*.py")))


STAMP = _stamp(Path(__file__).parents[1])


def _keep(compiled: Any) -> bool:
    """Keep code for the next start, until any file of this backend changes; whether that can be.

    Numba looks at the function's own file alone, but code of the loops that it calls is
    inlined: after an edit or an upgrade of another file it would be wrong.
    """
    try:
        compiled.enable_caching()
    except RuntimeError:  # neither the package nor a home is there to write to
        return False
    compiled._cache._cache_file._source_stamp = STAMP
    return True
