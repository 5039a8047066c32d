"""The examples in README.md, CONTRIBUTING.md and the docs run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USES_LP_POOL = """
import torch
import deltaconvert
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2, (2, 3)))
delta = deltaconvert.convert(model, strict=True)
frame = torch.rand(1, 3, 9, 12)
for step in range(3):
    torch.testing.assert_close(delta(frame), model(frame))
    frame[..., 4:6, 5:8] += 1
assert delta.stream.last["_1"].candidates < 9, delta.stream.last["_1"]
assert [n.backend for n in delta.stream.program.nodes] == ["cpu"] * 3
"""


def blocks(file: str) -> list[tuple[str, str]]:
    """Return language and text of each fenced block that is meant to run."""
    found = re.findall(r"^```(python|bash)\n(.*?)^```$", (ROOT / file).read_text(), re.M | re.S)
    assert found, f"{file} has examples"
    return found


def environment(folder: Path) -> dict[str, str]:
    """The interpreter's own commands first; a stand-in where nothing is installed."""
    shim = folder / "bin" / "deltaconvert"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deltaconvert "$@"\n')
    shim.chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(shim.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}


def run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def anchors(file: Path) -> set[str]:
    """Return what a link into a page may name: its headings as GitHub calls them, and its ids."""
    found, text = set(), re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(1 for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
        found.add(f"{name}-{again}" if again else name)
    return found | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("file", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")],
                         ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.slow
def test_the_readmes_blocks_run_in_order_in_an_empty_folder(tmp_path):
    env = environment(tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    found = blocks("README.md")
    session = "\n".join(text for language, text in found if language == "python")
    run([sys.executable, "-c", session], folder, env)
    for language, text in found:
        if language == "bash":
            run(["bash", "-euc", text], folder, env)
    assert (folder / "resnet18.delta").stat().st_size > 40e6


@pytest.mark.slow
def test_the_command_lines_blocks_run_in_order_in_an_empty_folder(tmp_path):
    env = environment(tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    for language, text in blocks("docs/command-line.md"):
        assert language == "bash"
        run(["bash", "-euc", text], folder, env)
    for name in ("run.html", "check.html", "graph.html", "graph.dot", "runs/run1/summary.json"):
        assert (folder / name).is_file()


def test_the_operator_in_contributing_is_all_that_an_operator_needs(tmp_path):
    (language, text), = blocks("CONTRIBUTING.md")
    assert language == "python"
    (tmp_path / "lp_pool_operator.py").write_text(text)
    env = environment(tmp_path)
    run([sys.executable, "-c", "import lp_pool_operator\n" + USES_LP_POOL], tmp_path, env)
