"""``deltaconvert inspect``."""

import json

import torch

from deltaconvert.model_specs import build_model
from tests.cli.conftest import SPEC


def test_shows_every_node(cli, converted, tmp_path):
    done = cli("inspect", converted, "--size", "32x48", "--json", tmp_path / "graph.json")
    assert done.code == 0, done.err
    assert "for frames of 1x3x32x48" in done.out
    lines = done.out.splitlines()
    assert lines[2].split() == ["node", "operator", "rule", "runs", "by", "threshold", "output",
                                "work", "state", "kB"]
    assert any("conv2d + relu" in line and "1x8x16x24" in line for line in lines)
    assert "multiply-adds: " in done.out
    assert "settings: backend=reference, threshold=0.0" in done.out
    data = json.loads((tmp_path / "graph.json").read_text())
    # 3x3 filters: 3 to 8 channels, 8 to 4, both over 16x24 pixels.
    assert data["multiply_adds"] == 16 * 24 * 9 * (3 * 8 + 8 * 4)
    assert sum(n["share"] for n in data["nodes"]) == 1
    first = next(n for n in data["nodes"] if n["shape"] == [1, 8, 16, 24])
    assert first["state_bytes"] == 16 * 24 * (8 * 4 + 1)


def test_says_what_runs_densely_and_why(cli, folder):
    assert cli("convert", "plain.pth", "--model", SPEC, "--model-arg", "unknown=True", "-o",
               "odd.delta", "--backend", "reference").code == 0
    done = cli("inspect", "odd.delta", "--size", "32x48")
    assert done.code == 0, done.err
    assert "unknown operators, run whole and densely:" in done.out
    assert "cummax is not an operator that deltaconvert knows" in done.out


def test_asks_for_the_channels_that_the_model_takes(cli, folder):
    model = build_model(SPEC, {"width": 1})
    torch.save(model.state_dict(), "gray.pth")
    assert cli("convert", "gray.pth", "--model", SPEC, "--model-arg", "width=1", "-o",
               "gray.delta", "--backend", "reference").code == 0
    assert "for frames of 1x1x360x640" in cli("inspect", "gray.delta").out


def test_refuses_a_size_that_is_none(cli, converted):
    done = cli("inspect", converted, "--size", "large")
    assert done.code == 2
    assert "give height x width" in done.err
