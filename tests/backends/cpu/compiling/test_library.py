"""Loops that are compiled with the entries that call them."""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target

from deltaconvert.backends import cpu
from deltaconvert.backends.cpu.compiling import jit
from deltaconvert.backends.cpu.compiling.jit import Entry, entry, loop
from deltaconvert.backends.cpu.compiling.library import Part
from deltaconvert.backends.cpu.compiling.native import Entries, view
from deltaconvert.backends.cpu.operators import pooling


@loop
def add(numbers, amount):
    """Add to each number."""
    for i in range(numbers.shape[0]):
        numbers[i] += amount


@loop
def add_twice(numbers, amount):
    """Add a number that is known when this is compiled, and one that is not."""
    add(numbers, 3)
    add(numbers, amount)


@entry
def add_at(address, amount):
    """Add to the three numbers at an address."""
    add_twice(view(address, 3, np.empty(0, np.int64)), amount)


@pytest.fixture
def compiled(tmp_path, monkeypatch) -> Any:
    """Compile the entry anew, in an empty cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    address: Any = add_at.address
    assert address
    return add_at


def test_an_entry_runs_its_parts(compiled) -> None:
    numbers = np.array([1, 2, 3])
    compiled(numbers.ctypes.data, 4)
    assert numbers.tolist() == [8, 9, 10]


def test_parts_have_no_machine_code_of_their_own(compiled) -> None:
    for part in (add, add_twice):
        (overload,) = part.overloads.values()  # one for a number that is written out, too
        assert isinstance(overload.library, Part)
        assert overload.library.get_pointer_to_function(overload.fndesc.mangled_name) == 0


def test_a_part_may_be_called_by_other_functions_and_from_python(compiled) -> None:
    @numba.njit
    def other(numbers):
        add_twice(numbers, 1)

    numbers = np.array([1, 2, 3])
    other(numbers)
    add_twice(numbers, 10)
    assert numbers.tolist() == [18, 19, 20]


def test_two_entries_share_no_name_of_a_part(tmp_path, monkeypatch) -> None:
    """It may mean something else in code that another process put into the cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    mean: Any = entry(pooling.MEAN.float32.function)
    assert mean.address
    names = [f.name for f in mean._compiled._library._final_module.functions
             if not f.is_declaration]
    assert any("reduce" in name for name in names)  # too large to be taken in
    assert [name for name in names if "7Pooling9mean_rows" not in name and "NRT_" not in name] == []


def test_entries_have_names_of_their_own() -> None:
    """By which Numba finds their code: with one name, one would run the other's."""
    modules = [importlib.import_module(m.name)
               for m in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}.")]
    made = {one for module in modules for value in vars(module).values()
            for one in (value if isinstance(value, Entries) else [value])
            if isinstance(one, Entry)}
    names = {(e.function.__code__.co_filename, e.function.__qualname__) for e in made}
    assert len(made) > 40
    assert len(names) == len(made)


def test_what_others_compile_is_as_ever(compiled) -> None:
    assert "_library_class" not in vars(cpu_target.target_context.codegen())


def test_a_numba_that_is_not_known_compiles_as_it_does_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_EntryFunction", CFunc)

    @loop
    def double(numbers):
        for i in range(numbers.shape[0]):
            numbers[i] *= 2

    @entry
    def double_at(address, size):
        double(view(address, size, np.empty(0, np.int64)))

    numbers = np.array([1, 2, 3])
    double_at(numbers.ctypes.data, 3)
    assert numbers.tolist() == [2, 4, 6]
    (overload,) = double.overloads.values()
    assert not isinstance(overload.library, Part)


NOWHERE_TO_KEEP_IT = """
import numpy as np
from numba.core import caching

caching.CacheImpl._locator_classes = []  # of folders that can be written to

def full(*given):
    raise OSError(28, "No space left on device")

if {full}:
    caching.CacheImpl._locator_classes = [caching.UserWideCacheLocator]
    caching.IndexDataCacheFile.save = full

from tests.backends.cpu.compiling.test_library import add, add_at

numbers = np.zeros(3, np.int64)
add_at(numbers.ctypes.data, 4)
if not {full}:
    add(numbers, 1)
print(numbers.tolist())
"""


@pytest.mark.parametrize("full, expected", [(False, "[8, 8, 8]\n"), (True, "[7, 7, 7]\n")])
def test_code_that_cannot_be_kept_is_compiled_at_each_start(full, expected, tmp_path):
    """No home, and a package that may not be written to; or a disk that is full."""
    ran = subprocess.run([sys.executable, "-c", NOWHERE_TO_KEEP_IT.format(full=full)],
                         env=os.environ | {"NUMBA_CACHE_DIR": "", "HOME": str(tmp_path)},
                         capture_output=True, text=True, check=False)
    assert ran.stdout == expected, ran.stderr
    assert full or not ran.stderr or "every start, for no folder can be written to" in ran.stderr
