"""Run the tables of this folder, one file an operator."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaconvert.operators import registry
from tests.operators import table

FOLDER = Path(__file__).parent
OPERATORS = [o.name for o in registry.all_operators()]


def cases_of(name: str) -> Any:
    """The tables of an operator: a file of its name, or what the file of its source has for it."""
    source = registry.named(name).function.__module__.rpartition(".")[2]
    for file in (name, source):
        if (FOLDER / f"{file}.py").is_file():
            module = importlib.import_module(f"tests.operators.{file}")
            own = module if file == name else None
            return getattr(module, "OPERATORS", {}).get(name, own)
    return None


def tables(kind: str) -> list:
    """Every entry of every operator, with the operator's name."""
    found = []
    for name in OPERATORS:
        for number, entry in enumerate(getattr(cases_of(name), kind, [])):
            title = getattr(entry, "title", str(number)).replace(" ", "_")
            found.append(pytest.param(name, entry, id=f"{name}-{title}"))
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_cases(name):
    source = registry.named(name).function.__module__.rpartition(".")[2]
    cases = cases_of(name)
    assert cases, (f"write {name}.py beside this file, or OPERATORS[{name!r}] in {source}.py: "
                   f"VALUES and SPELLINGS of {name}")
    assert cases.VALUES
    assert cases.SPELLINGS


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
