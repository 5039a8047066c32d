"""Submodules that are converted inside a model that cannot be traced whole."""

from deltaconvert.islands.converting import convert_islands, find_islands
from deltaconvert.islands.module import IslandsModule, IslandsProgram, IslandsStream

__all__ = ["IslandsModule", "IslandsProgram", "IslandsStream", "convert_islands", "find_islands"]
