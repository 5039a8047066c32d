"""Peak memory of this process, as the system counts it; nothing where it does not tell.

Only Linux has a peak that can be started anew, so that one process can measure one runtime
after the other.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def resident() -> int | None:
    """Return the bytes that are resident, after freed memory went back to the system."""
    _trim()
    return _read("VmRSS")


def reset_peak() -> bool:
    """Start the peak anew at what is resident now; return whether the system does that."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """Return the most bytes that were resident since `reset_peak`."""
    return _read("VmHWM")


def total() -> int | None:
    """Return the machine's memory in bytes."""
    return _field(Path("/proc/meminfo"), "MemTotal")


def _read(name: str) -> int | None:
    return _field(_STATUS, name)


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")),
                None)


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc: what was freed may count as resident still
        return


class Growth:
    """How far the process grew over what it was when this was made.

    ``start`` is made before something is prepared, ``watch()`` called behind the preparation,
    whose own peak does not count, and ``bytes()`` after it has run.
    """

    def __init__(self) -> None:
        """Take what is resident now as zero."""
        gc.collect()  # what is freed only later would count as growth below zero
        self._start = resident()
        self._works = False

    def watch(self) -> None:
        """Begin to look for the peak."""
        resident()
        self._works = reset_peak()

    def bytes(self) -> int | None:
        """Return the peak over the start; ``None`` where the system does not tell."""
        top = peak()
        if not self._works or self._start is None or top is None:
            return None
        return max(0, top - self._start)
