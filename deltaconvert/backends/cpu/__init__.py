"""The ``cpu`` backend: candidates as the rows of a product, one fused loop behind it.

`backend` says which nodes it runs; `runner`, `engine` and `frame` run a stream's frames.
A kind of step is a file: `convolution` (by `winograd`, `few` and `depthwise` too), `elementwise`,
`pooling`, `resizing`, `selection`, `shuffle`, `norm`, `softmax`, `whole`, `moves`, `union`,
`pixelwise`, and the door, `sparsify`. `candidates`, `parts` and `finish` are what steps have in
common, with `rowwise` around most; `product`, `reduction`, `row` and `narrow` are kernels in LLVM's
vectors. `jit`, `library` and `native` are how all of it is compiled.

Importing this package imports Numba: `deltaconvert.backends.base.create` does so only
when the backend is used.
"""

from __future__ import annotations

from deltaconvert.backends.cpu.backend import CpuBackend, create

__all__ = ["CpuBackend", "create"]
