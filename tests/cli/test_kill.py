"""``kill -9`` at random moments leaves only whole files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deltaconvert.files import load
from tests.cli.conftest import SPEC

ROOT = Path(__file__).resolve().parents[2]

# `convert` and `run` over and over in one process: the moment of the kill is nearly always
# one of writing, which by itself takes a thousandth of the time that imports do.
CONVERT = """
import sys
from deltaconvert.cli import main
print("ready", flush=True)
while True:
    try:
        main(["convert", "plain.pth", "--model", sys.argv[1], "-o", "a.delta", "--json", "a.json",
              "--quiet"])
    except SystemExit as done:
        if done.code:
            raise
"""
RUN = """
from deltaconvert.cli import main
print("ready", flush=True)
while True:
    try:
        main(["run", "small.delta", "--source", "synthetic:frames=3,size=32x48", "--overlay",
              "--postprocess", "shape_for_kill:shape", "--save", "npz", "--quiet",
              "--report", "a.html", "--dense-every", "0"])
    except SystemExit as done:
        if done.code:
            raise
"""


def killed(folder: Path, code: str, seed: int, *words: str,
           by: signal.Signals = signal.SIGKILL) -> int:
    """Start a script, and kill it at a moment that the seed says; return what it ends with."""
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder,
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    time.sleep(random.Random(seed).uniform(0.1, 2.0))
    assert process.poll() is None, process.communicate()
    process.send_signal(by)
    process.communicate()
    return process.returncode


def assert_whole(path: Path) -> None:
    """A file that has its name is all there."""
    if path.suffix == ".delta":
        load(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 1, 2]
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            assert arrays["out"].shape[0] == 3
    elif path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 3
    elif path.suffix == ".html":
        assert path.read_text().endswith("</html>\n")
    else:
        raise AssertionError(f"{path} was not to be written")


def check(folder: Path, before: set[Path]) -> int:
    """Look at every file that came; those of a killed process have the name of what is not whole.

    Returns:
        How many are whole.
    """
    came = [p for p in folder.rglob("*") if p.is_file() and p not in before
            and "__pycache__" not in p.parts]
    whole = [p for p in came if not p.name.endswith(".partial")]
    for path in whole:
        assert_whole(path)
    return len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_convert(folder, seed):
    before = set(folder.rglob("*"))
    killed(folder, CONVERT, seed, SPEC)
    check(folder, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_run(converted, folder, seed):
    (folder / "shape_for_kill.py").write_text("def shape(out):\n    return list(out.shape)\n")
    before = set(folder.rglob("*"))
    killed(folder, RUN, seed)
    check(folder, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_terminated_it_leaves_no_half_written_file_either(converted, folder, seed):
    (folder / "shape_for_kill.py").write_text("def shape(out):\n    return list(out.shape)\n")
    before = set(folder.rglob("*"))
    code = killed(folder, RUN, seed, by=signal.SIGTERM)
    assert code in (143, -signal.SIGTERM), code  # -15 between two commands
    check(folder, before)
    if code == 143:
        assert not list(folder.rglob("*.partial"))
