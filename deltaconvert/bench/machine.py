"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deltaconvert.bench import memory
from deltaconvert.processor import cores, flags, processor

LIBRARIES = ("torch", "numpy", "numba", "onnx", "onnxruntime", "onnxscript", "openvino", "timm",
             "torchvision")


def describe(threads: int) -> dict[str, Any]:
    """Return processor, memory, operating system, versions and threads as plain data."""
    return {
        "processor": processor(), "architecture": platform.machine(), "cores": cores(),
        "flags": flags(), "memory_bytes": memory.total(), "system": platform.system(),
        "python": platform.python_version(), "threads": threads, "libraries": versions(),
        "openmp": {name: value for name, value in sorted(os.environ.items())
                   if name.startswith(("OMP_", "KMP_", "GOMP_", "MKL_"))},
    }


def in_words(machine: dict[str, Any]) -> str:
    """Return a machine in one line."""
    known = machine["libraries"]
    said = ", ".join(f"{name} {known[name]}" for name in ("torch", "onnxruntime", "openvino")
                     if name in known)
    return (f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
            f"{said}, Python {machine['python']}")


# Of the cores' time. A quiet machine has some daemons; one process more on two cores takes half.
BUSY_SHARE = 0.05


def warning(others_share: float | None) -> str:
    """Return what is to be said of a machine that was busy meanwhile; empty where it was not."""
    if others_share is None or others_share <= BUSY_SHARE:
        return ""
    return (f"other processes took {others_share:.0%} of the cores' time meanwhile: do not rely "
            "on these times")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


class Others:
    """What else the machine did meanwhile: figures from a busy one mean little.

    Dense operators suffer most, because all their threads must arrive before any goes on.
    """

    def __init__(self) -> None:
        """Begin to count."""
        self._before = _cpu_seconds()

    def share(self) -> float | None:
        """Return the share of the cores' time that other processes took since the start.

        ``None`` where the system does not tell.
        """
        before, now = self._before, _cpu_seconds()
        if before is None or now is None or now.whole <= before.whole:
            return None
        others = (now.busy - now.own) - (before.busy - before.own)
        return max(0.0, others / (now.whole - before.whole))


class _Cpu(NamedTuple):
    busy: float
    whole: float
    own: float


def _cpu_seconds() -> _Cpu | None:
    """Read the time that all cores were busy and existed, and this process's own."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are within the first two.
    counts = [int(count) / ticks for count in line.split()[1:9]]
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return _Cpu(sum(counts) - counts[3] - counts[4], sum(counts), own)
