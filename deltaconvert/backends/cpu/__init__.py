"""The ``cpu`` backend: candidates as the rows of a product, one fused loop behind it.

Importing this package imports Numba: `deltaconvert.backends.base.create` does so only
when the backend is used.
"""

from __future__ import annotations

from deltaconvert.backends.cpu.backend import CpuBackend, create

__all__ = ["CpuBackend", "create"]
