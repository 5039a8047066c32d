"""What every backend must have."""

from __future__ import annotations

import pytest
import torch

from deltaconvert.backends import base
from deltaconvert.backends.base import Backend
from deltaconvert.config import Config
from deltaconvert.errors import UnsupportedError


def test_a_backend_that_lacks_a_part_is_not_made():
    class Half(Backend):
        name = "half"

        def supports(self, node):
            return None

    with pytest.raises(TypeError, match=r"abstract methods '?bind'?, '?fold_filters'?, '?plan'?"):
        Half()


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(base.importlib, "import_module", missing)
    with pytest.raises(UnsupportedError, match=r"'cpu' needs the package numba.*pip install numba"):
        base.create("cpu", Config(), torch.device("cpu"))


@pytest.mark.parametrize("module", [
    "numba.core.types", "_ctypes", "deltaconvert.backends.cpu.compiling.jit"])
def test_what_is_broken_is_not_said_to_be_missing(monkeypatch, module):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(base.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=module):
        base.create("cpu", Config(), torch.device("cpu"))


def test_the_cpu_backend_is_refused_on_another_device():
    with pytest.raises(UnsupportedError, match=r"frames are on cuda:0.*backend='auto'"):
        base.create("cpu", Config(), torch.device("cuda", 0))
