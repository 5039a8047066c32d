"""The processor of this machine: its name, its cores, its instruction sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Of the processor's flags, those that decide how fast a convolution is.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd",
         "sve", "bf16")


def processor() -> str:
    """Return the processor's name, or its architecture where it has none to tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def flags() -> list[str]:
    """Return the instruction sets that matter, where the system tells them."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [flag for flag in FLAGS if flag in found]


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines
                 if line.partition(":")[0].strip() == key), "")
