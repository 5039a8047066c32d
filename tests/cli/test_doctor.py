"""``deltaconvert doctor``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch


def test_says_what_is_installed_and_which_backends_work(cli, tmp_path):
    done = cli("doctor", "--json", tmp_path / "doctor.json")
    assert done.code == 0, done.out
    data = json.loads((tmp_path / "doctor.json").read_text())
    assert data["healthy"] is True
    assert data["system"]["threads"] == torch.get_num_threads()
    packages = {p["name"]: p for p in data["packages"]}
    assert packages["torch"]["version"].split("+")[0] == torch.__version__.split("+")[0]
    backends = {b["name"]: b["state"] for b in data["backends"]}
    assert backends["cpu"] == backends["reference"] == "ok"
    assert "agrees with dense on a small network" in done.out


def test_quiet_says_nothing_while_loops_are_compiled(tmp_path):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "deltaconvert", "doctor", "--quiet"], capture_output=True,
        env=os.environ | {"PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(tmp_path)}, check=False)
    assert list(tmp_path.rglob("*.nbc"))  # they were
    assert (done.stdout, done.stderr) == (b"", b"")


def test_says_how_to_get_what_is_missing(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "av", None)
    done = cli("doctor")
    assert done.code == 1  # videos are not optional, timm is
    assert "- av (videos and pictures): " in done.out
    assert "pip install timm" in done.out


def test_a_backend_that_is_broken_is_found(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "deltaconvert.backends.paper", None)
    done = cli("doctor")
    assert done.code == 1
    line = next(line for line in done.out.splitlines() if line.startswith("paper"))
    assert line.split()[:5] == ["paper", "broken", "import", "of", "deltaconvert.backends.paper"]


def test_a_backend_for_other_machines_is_no_fault(cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = cli("doctor")
    assert done.code == 0, done.out
    line = next(line for line in done.out.splitlines() if line.startswith("cuda "))
    assert line.split()[1] == "missing"
    assert "no NVIDIA GPU" in line
