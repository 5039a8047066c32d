"""What is installed, what importing it brings along, and from where it can be imported.

What imports something does so in a fresh interpreter: in this one everything is imported already.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

import deltaconvert

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
# Where each importable package of the project lies in the tree.
SOURCES = {"deltaconvert": "deltaconvert", **SETUPTOOLS["package-dir"]}

# What only some functions need, and importing deltaconvert must leave alone.
OPTIONAL = {
    "numba",
    "llvmlite",
    "cupy",
    "av",
    "typer",
    "rich",
    "matplotlib",
    "torchvision",
    "safetensors",
    "timm",
    "onnxruntime",
    "openvino",
}

WHERE_FROM = """
import deltaconvert, deltaconvert.passes, deltaconvert.cuda
for module in deltaconvert, deltaconvert.passes, deltaconvert.cuda:
    print(*module.__path__[:1])
"""


def run_python(code, *, cwd, search=(), options=()):
    """Run `code` in a fresh interpreter and return what it printed, as lines."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if search:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, search))
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def installed_version():
    """Return the version that is installed in place from this tree, or skip the test."""
    # All of them: a build leaves metadata in the tree itself, which are found first.
    for distribution in metadata.distributions(name="deltaconvert"):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable") and origin["url"] == ROOT.as_uri():
            return distribution.version
    pytest.skip("deltaconvert is not installed in place from this tree")


def paths_in_tree():
    return [
        str(ROOT / SOURCES[name])
        for name in ("deltaconvert", "deltaconvert.passes", "deltaconvert.cuda")
    ]


def run_uninstalled(code, *, cwd, search=()):
    """Run `code` where deltaconvert is not installed: with -S no .pth file is read, so an
    install in place has no effect, and its dependencies are found as plain folders."""
    dependencies = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    return run_python(code, cwd=cwd, search=[*search, *dependencies], options=["-S"])


def test_imports_from_the_repository_root():
    assert run_uninstalled(WHERE_FROM, cwd=ROOT) == paths_in_tree()


def test_imports_by_search_path_alone(tmp_path):
    assert run_uninstalled(WHERE_FROM, cwd=tmp_path, search=[ROOT]) == paths_in_tree()


def test_imports_when_installed_in_place(tmp_path):
    installed_version()
    assert run_python(WHERE_FROM, cwd=tmp_path) == paths_in_tree()
    assert run_python(WHERE_FROM, cwd=ROOT) == paths_in_tree()


def test_every_pass_imports_under_the_name_of_the_package(tmp_path):
    files = sorted(p for p in (ROOT / "passes").rglob("*.py") if p.stem != "__init__")
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]
    code = f"""
import importlib
for name in {names}:
    print(importlib.import_module("deltaconvert." + name).__file__)
"""
    assert run_python(code, cwd=tmp_path, search=[ROOT]) == [str(p) for p in files]


def test_importing_is_light(tmp_path):
    code = """
import sys
import numpy, torch, torch.fx
before = set(sys.modules)
import deltaconvert, deltaconvert.cli
print(*set(sys.modules) - before)
print(torch.cuda.is_initialized())
"""
    imported, touched_cuda = run_python(code, cwd=tmp_path, search=[ROOT])
    assert "deltaconvert" in imported.split()
    assert "deltaconvert.backends.cpu" not in imported.split()
    assert OPTIONAL & {name.partition(".")[0] for name in imported.split()} == set()
    assert touched_cuda == "False"


def test_the_folder_cuda_hides_no_other_package_of_that_name(tmp_path):
    # PyTorch imports NVIDIA's `cuda.bindings`, CuPy `cuda.pathfinder`.
    other = tmp_path / "cuda" / "bindings_of_someone_else"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("", encoding="utf-8")
    code = "import cuda.bindings_of_someone_else as other; print(other.__path__[0])"
    assert run_python(code, cwd=ROOT, search=[tmp_path]) == [str(other)]


def packages_in_tree():
    """Map the name of each package, as it installs, to its folder."""
    found = {}
    for name, source in SOURCES.items():
        for folder in {path.parent for path in (ROOT / source).rglob("*.py")}:
            parts = folder.relative_to(ROOT / source).parts
            found[".".join((name, *parts))] = folder
    return found


def test_the_list_of_packages_matches_the_tree():
    assert SETUPTOOLS["packages"] == sorted(packages_in_tree())


def test_every_package_says_what_it_is():
    folders = packages_in_tree().values()
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


def test_every_file_beside_the_modules_is_package_data():
    left_out = []
    for name, folder in packages_in_tree().items():
        patterns = ["*.py", *SETUPTOOLS["package-data"].get(name, [])]
        for path in folder.iterdir():
            if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in patterns):
                left_out.append(str(path.relative_to(ROOT)))
    assert left_out == []


def test_a_benchmark_hides_no_package(tmp_path):
    """A script's own folder is searched first: ``coverage.py`` there would be Numba's coverage."""
    code = "import deltaconvert.backends.cpu; print('ok')"
    assert run_python(code, cwd=tmp_path, search=[ROOT / "benchmarks", ROOT]) == ["ok"]


def test_versions_agree():
    version = PYPROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert deltaconvert.__version__ == version
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == version


def test_the_installed_version_agrees():
    assert installed_version() == PYPROJECT["project"]["version"]
