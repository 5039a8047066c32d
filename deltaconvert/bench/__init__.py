"""The instrument: speed against dense, checked first, side by side in one run.

`networks` runs a whole model on a clip against the dense runtimes of `peers`, `layers` sweeps
single convolutions, `fidelity` finds the threshold that a fidelity allows. The command line
and ``benchmarks/`` are thin users of these. How to read the figures: ``docs/benchmarks.md``.
"""

from __future__ import annotations
