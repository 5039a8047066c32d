"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deltaconvert.bench import memory

LIBRARIES = ("torch", "numpy", "numba", "onnx", "onnxruntime", "onnxscript", "openvino", "timm",
             "torchvision")
# Of the processor's flags, those that decide how fast a convolution is.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd",
         "sve", "bf16")


def describe(threads: int) -> dict[str, Any]:
    """Return processor, memory, operating system, versions and threads as plain data."""
    return {
        "processor": processor(), "architecture": platform.machine(), "cores": _cores(),
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


def processor() -> str:
    """Return the processor's name, or its architecture where it has none to tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def flags() -> list[str]:
    """Return the instruction sets that matter, where the system tells them."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [flag for flag in FLAGS if flag in found]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines
                 if line.partition(":")[0].strip() == key), "")
