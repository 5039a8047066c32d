"""Run the tables of this folder, one file an operator."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

from deltaconvert.operators import registry
from tests.operators import table

OPERATORS = [o.name for o in registry.all_operators()]


def tables(kind: str) -> list:
    """Every entry of every file, with the operator's name."""
    found = []
    for name in OPERATORS:
        if not any(m.name == name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
            continue
        module = importlib.import_module(f"tests.operators.{name}")
        for number, entry in enumerate(getattr(module, kind, [])):
            title = getattr(entry, "title", str(number)).replace(" ", "_")
            found.append(pytest.param(name, entry, id=f"{name}-{title}"))
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_file_of_cases(name):
    path = Path(__file__).parent / f"{name}.py"
    assert path.is_file(), f"write {path.name} beside this file: VALUES and SPELLINGS of {name}"
    module = importlib.import_module(f"tests.operators.{name}")
    assert module.VALUES
    assert module.SPELLINGS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name, case", tables("VALUES"))
def test_values(name, case, backend, dtype):
    table.check_value(case, backend, dtype)


@pytest.mark.parametrize("name, group", tables("SPELLINGS"))
def test_every_spelling_becomes_the_one_operator(name, group):
    table.check_group(group, name)


@pytest.mark.parametrize("name, tried", tables("FOOTPRINTS"))
def test_the_footprint_is_what_the_dense_function_reads(name, tried):
    table.check_footprint(tried, name)
