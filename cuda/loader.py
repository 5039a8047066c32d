"""Kernel sources: which specialisation of which file, put together as one text.

The text holds all it includes, so that what is compiled, and cached under its hash, never
depends on files beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
NUMBERS = {torch.float32: "float", torch.float16: "f16", torch.bfloat16: "bf16"}
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One specialisation of a kernel.

    Args:
        file: in this folder.
        entry: the function.
        defines: preprocessor symbols and their values.
    """

    file: str
    entry: str
    defines: tuple[tuple[str, str | int], ...]

    @property
    def architecture(self) -> str | None:
        """Return what it must be compiled for, ``sm_90a``, or nothing where any GPU will do."""
        named = re.search(r"_sm(\d+)\.cu$", self.file)
        return f"sm_{named[1]}a" if named else None

    @property
    def options(self) -> tuple[str, ...]:
        """Return compiler options for the symbols."""
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in self.defines))


def kernel(file: str, entry: str, dtype: torch.dtype, **defines: str | int) -> Kernel:
    """Describe the specialisation for a dtype."""
    return Kernel(file, entry, (("NUMBER", NUMBERS[dtype]), *sorted(defines.items())))


def source_of(file: str, folders: Sequence[Path] = (FOLDER,)) -> str:
    """Return a file with its includes put in, each once; earlier folders go first."""
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        found = next(path for folder in folders if (path := folder / name).is_file())
        content = found.read_text(encoding="utf-8").replace("#pragma once\n", "")
        return _INCLUDE.sub(lambda match: text(match[1]), content)

    return text(file)
