"""Compiled code is kept until a file that it may be made of changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltaconvert.backends import cpu
from deltaconvert.backends.cpu.compiling import jit
from deltaconvert.backends.cpu.frames.frame import run_steps


def test_kept_code_is_stamped_by_every_file_of_the_backend() -> None:
    """An entry calls loops of any of them."""
    folder = Path(cpu.__file__).parent
    assert {name for name, *_ in jit.STAMP} == {
        str(Path(where, name).relative_to(folder))
        for where, _, names in os.walk(folder) for name in names if name.endswith(".py")}
    kept, _ = run_steps._uncompiled()
    assert kept._cache._cache_file._source_stamp == jit.STAMP


@pytest.mark.parametrize("name", ["top.py", "rows/row.py"])
def test_it_expires_when_a_file_changes_however_deep(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("x = 1\n", encoding="utf-8")
    before = jit._stamp(tmp_path)
    assert jit._stamp(tmp_path) == before
    file.write_text("x = 10\n", encoding="utf-8")
    assert jit._stamp(tmp_path) != before
