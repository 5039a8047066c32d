"""The instrument: speed against dense, checked first, side by side in one run.

`networks` runs a whole model on a clip against the dense runtimes of `peers`, `layers` sweeps
single convolutions. Which threshold a fidelity allows, `checking.fidelity` finds. The command line
and ``benchmarks/`` are thin users of these. How to read the figures: ``docs/benchmarks.md``.
"""

from __future__ import annotations
