"""Try a built wheel as a user meets it: installed, and far from the source tree.

    python tests/wheel_check.py dist/deltaconvert-0.1.0-py3-none-any.whl

The wheel goes into an environment of its own. What it depends on is taken from the
environment that runs this script, so that PyTorch is not installed a second time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "deltaconvert": "deltaconvert",
    "passes": "deltaconvert/passes",
    "cuda": "deltaconvert/cuda",
}
SUFFIXES = {".py", ".cu", ".cuh", ".typed"}

IMPORT_LIGHTLY = """
import sys
import deltaconvert, deltaconvert.passes, deltaconvert.cuda
here = sys.prefix
for module in deltaconvert, deltaconvert.passes, deltaconvert.cuda:
    assert module.__file__.startswith(here), f"{module.__file__} is not in {here}"
heavy = {"numba", "cupy", "av", "typer", "torchvision"} & set(sys.modules)
assert not heavy, f"importing deltaconvert imported {sorted(heavy)}"
import torch
assert not torch.cuda.is_initialized(), "importing deltaconvert initialised CUDA"
"""

CONVERT_SAVE_LOAD = """
import torch
import deltaconvert

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(8, 4, 3, stride=2, padding=1),
).eval()
first = torch.rand(1, 3, 32, 48)
second = first.clone()
second[:, :, 10:14, 20:26] += 0.5

def check(delta, what):
    for number, frame in enumerate((first, second)):
        with torch.no_grad():
            dense = model(frame)
        out = delta(frame)
        assert out.shape == dense.shape and out.dtype == dense.dtype, (what, number, out.shape)
        # Sums of up to 72 products of numbers near 1, in another order: well under 1e-5.
        error = (out - dense).abs().max().item()
        assert error <= 1e-5, f"{what}, frame {number}: off by {error:g}"

delta = deltaconvert.convert(model)
check(delta, "converted")
deltaconvert.save(delta, "tiny.delta")
check(deltaconvert.load("tiny.delta"), "loaded")
"""


def main() -> None:
    """Check the wheel named on the command line; a check that fails ends the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    check_contents(wheel)
    with tempfile.TemporaryDirectory(prefix="deltaconvert-wheel-") as folder:
        scripts = install(wheel, Path(folder) / "venv")
        python = [scripts / "python", "-X", "faulthandler", "-c"]
        step("imports, lightly", [*python, IMPORT_LIGHTLY], folder)
        step("converts, saves and loads", [*python, CONVERT_SAVE_LOAD], folder)
        step("deltaconvert --help", [scripts / "deltaconvert", "--help"], folder)
    print(f"{wheel.name}: works outside the tree")


def check_contents(wheel: Path) -> None:
    """Compare the wheel's files with the tree: all of the package, and nothing beside it."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")}
    stem = "-".join(wheel.name.split("-")[:2])
    tops = {n.partition("/")[0] for n in names}
    if tops != {"deltaconvert", f"{stem}.dist-info"}:
        sys.exit(f"{wheel.name} installs {sorted(tops)}: only deltaconvert is ours to install")
    if f"{stem}.dist-info/licenses/LICENSE" not in names:
        sys.exit(f"{wheel.name} holds no LICENSE")
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in SOURCES.items()
        for path in (ROOT / source).rglob("*")
        if path.suffix in SUFFIXES
    }
    packed = {n for n in names if n.startswith("deltaconvert/")}
    if packed != expected:
        sys.exit(
            f"{wheel.name} lacks {sorted(expected - packed)}, "
            f"and holds {sorted(packed - expected)} that the tree does not have"
        )


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel into a new environment and return its folder of scripts."""
    venv.create(environment, symlinks=True, with_pip=False)
    scripts = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install"]
    step("installs", [*pip, "--quiet", "--no-deps", "--no-index", wheel], environment.parent)
    # Folders named in a .pth file are searched last, and .pth files in them are not
    # read: an install in place in the outer environment cannot stand in for the wheel.
    outer = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(outer), encoding="utf-8")
    return scripts


def step(name: str, command: list[str | Path], folder: str | Path) -> None:
    """Run one command in a folder outside the tree; end the program where it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{name}: failed\n{done.stdout}{done.stderr}")
    print(f"{name}: ok")


if __name__ == "__main__":
    main()
