"""Fixtures that more than one test file uses."""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

torch.manual_seed(0)  # for the models that files of tests make while they are imported


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw the same random numbers each time: some draws cancel out to more than a rounding."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_measured() -> Iterator[None]:
    """Have the cpu backend compute all lanes its own way: what it measures is not always alike."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("numba"):
            patch.setattr("deltaconvert.backends.cpu.convolutions.fallback.break_even",
                          lambda *_: math.inf)
        yield


@pytest.fixture
def data_dir() -> Path:
    """Folder of clips and weights that are not part of the repository; see `data_file`."""
    folder = os.environ.get("DELTACONVERT_DATA", REPOSITORY.parent / "shared" / "data")
    if not Path(folder).is_dir():
        pytest.skip(f"no data folder at {folder}; set DELTACONVERT_DATA")
    return Path(folder)


@pytest.fixture
def data_file(data_dir: Path) -> Callable[[str], Path]:
    """Path of a file in the data folder by its name; the test is skipped without it."""

    def find(name: str) -> Path:
        path = data_dir / name
        if not path.is_file():
            pytest.skip(f"no {name} in {data_dir}; set DELTACONVERT_DATA")
        return path

    return find
