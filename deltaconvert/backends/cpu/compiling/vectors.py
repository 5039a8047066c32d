"""What the processor is compiled for: how long its vectors are, and how many it has."""

from __future__ import annotations

from collections.abc import Mapping

import llvmlite.binding
from numba import config

CACHE_LINE = 64


def _features() -> Mapping[str, bool]:
    """Return what the processor can do for which Numba compiles: this one, unless told."""
    told: str | None = getattr(config, "CPU_FEATURES", None)  # NUMBA_CPU_FEATURES
    if told is not None:
        return {name[1:]: name[0] == "+" for name in told.split(",") if name}
    if getattr(config, "CPU_NAME", None):
        return {}
    features: Mapping[str, bool] = llvmlite.binding.get_host_cpu_features()
    return features


def _registers(features: Mapping[str, bool]) -> tuple[int, int]:
    """Return how many floats a vector register holds, and how many rows make a block."""
    if features.get("avx512f"):
        return 16, 12  # 32 registers: 24 accumulators
    if features.get("avx2") or features.get("avx"):
        return 8, 6  # 16 registers: 12 accumulators
    return 4, 12 if features.get("neon") else 6


WIDTH, BLOCK = _registers(_features())
MULTIPLIES_PAIRS = bool(_features().get("avx512bf16"))  # AVX-512 comes with it
