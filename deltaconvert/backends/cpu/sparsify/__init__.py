"""The door in: what changed in a frame, pixel by pixel or in blocks, and its replacement."""

from __future__ import annotations

from deltaconvert.backends.cpu.sparsify.step import CpuSparsify, plan

__all__ = ["CpuSparsify", "plan"]
