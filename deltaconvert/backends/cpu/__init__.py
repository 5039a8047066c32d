"""The ``cpu`` backend: candidates as the rows of a product, one fused loop behind it.

`backend` says which nodes it runs, and `runner` runs a stream's frames. Each of these uses only
those above it:

- `compiling`: how loops become machine code, by Numba and LLVM, and how that is kept
- `maps`: how maps are stored, and which of their pixels are read
- `frames`: the engine: a table of steps, their candidates, and the workers that share them
- `rows`: a pixel's numbers: sums over taps, activations, the comparison with what was there
- `convolutions`: products with filters, Winograd's tiles, linear layers, the dense fallback
- `operators`: all other kinds of steps, a file each
- `sparsify`: the door: which pixels of a frame changed

Importing this package imports Numba: `deltaconvert.backends.base.create` does so only
when the backend is used.
"""

from __future__ import annotations

from deltaconvert.backends.cpu.backend import CpuBackend, create

__all__ = ["CpuBackend", "create"]
