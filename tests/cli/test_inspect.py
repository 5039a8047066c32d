"""``deltaconvert inspect``."""

import json

import pytest
import torch

from deltaconvert.errors import CheckpointError
from deltaconvert.files import load
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
    assert "settings: backend=reference, dtype=None, threshold=0.0" in done.out
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
    (line,) = [line for line in done.out.splitlines() if "is not an operator" in line]
    assert line.strip().startswith("4: cummax is not an operator that deltaconvert knows [0.0% of "
                                   "the multiply-adds] (")
    assert line.endswith("return torch.cummax(x, 1)[0]); to be local it takes nothing: each number "
                         "depends on all before it")


def test_the_story_is_in_the_json_too(cli, folder):
    assert cli("convert", "plain.pth", "--model", SPEC, "--model-arg", "unknown=True", "-o",
               "odd.delta", "--backend", "reference").code == 0
    assert cli("inspect", "odd.delta", "--size", "32x48", "--json", "odd.json").code == 0
    (fallback,) = json.loads((folder / "odd.json").read_text())["fallbacks"]
    assert set(fallback) == {"node", "path", "source", "rule", "reason", "advice", "share"}
    assert (fallback["path"], fallback["rule"], fallback["share"]) == ("4", "unknown", 0)


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


def test_the_header_alone_needs_no_weights(cli, converted, tmp_path, monkeypatch):
    monkeypatch.setattr("deltaconvert.cli.inspect.load", None)
    done = cli("inspect", converted, "--header", "--json", tmp_path / "header.json")
    assert done.code == 0, done.err
    assert "format version 1" in done.out
    assert "2 conv2d" in done.out
    data = json.loads((tmp_path / "header.json").read_text())
    assert data["inputs"] == ["input"]
    assert data["tensors"] == 9
    assert data["dtypes"] == {"F32": 8, "I64": 1}
    assert data["operators"] == {"conv2d": 2, "batch_norm": 1, "relu": 1}
    assert data["preprocessing"] == {"order": "rgb", "mean": [0.0], "std": [1.0], "size": None,
                                     "shorter_side": None, "interpolation": "bilinear"}


def test_the_graph_needs_no_weights_either(cli, converted, tmp_path):
    """The same file with its weights overwritten: `load` refuses it, the graph is the same."""
    whole = cli("inspect", converted, "--size", "32x48")
    assert "for frames of 1x3x32x48; weights not read" in whole.out
    data = bytearray(converted.read_bytes())
    weights = 8 + int.from_bytes(data[:8], "little")
    data[weights:] = b"\xff" * (len(data) - weights)
    spoilt = tmp_path / "spoilt.delta"
    spoilt.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match its checksum"):
        load(spoilt)
    done = cli("inspect", spoilt, "--size", "32x48", "--html", tmp_path / "graph.html")
    assert done.code == 0, done.err
    assert done.out == whole.out.replace(str(converted), str(spoilt))
    refused = cli("inspect", spoilt, "--source", "synthetic", "--size", "32x48", "--frames", "3")
    assert refused.code == 2
    assert "do not match its checksum" in refused.err


def test_a_clip_shows_what_changed_at_each_node(cli, converted, tmp_path):
    done = cli("inspect", converted, "--source", "synthetic:active_share=0.05", "--size", "32x48",
               "--frames", "4", "--json", tmp_path / "work.json")
    assert done.code == 0, done.err
    assert "synthetic, 4 frames, the first apart" in done.out
    assert "where the mask grows most:" in done.out
    data = json.loads((tmp_path / "work.json").read_text())
    nodes = {n["node"]: n["work"] for n in data["nodes"]}
    first, second = list(nodes)[1:]
    assert 0 < nodes[first]["update_ratio_in"] < nodes[first]["update_ratio_out"] < 1
    assert nodes[second]["update_ratio_in"] == nodes[first]["update_ratio_out"]
    assert nodes[first]["growth"] == (
        nodes[first]["update_ratio_out"] / nodes[first]["update_ratio_in"])
    assert all(work["amplification"] >= 1 for work in nodes.values())
    assert 0 < data["needed"] <= data["scheduled"] <= 1


def test_one_frame_shows_no_change(cli, converted):
    done = cli("inspect", converted, "--source", "synthetic", "--size", "32x48", "--frames", "1")
    assert done.code == 2
    assert "--source has 1 frame: what changes shows from the second" in done.err


def test_pictures_of_the_graph(cli, converted, tmp_path):
    done = cli("inspect", converted, "--size", "32x48", "--dot", tmp_path / "a.dot", "--html",
               tmp_path / "a.html")
    assert done.code == 0, done.err
    assert (tmp_path / "a.dot").read_text().startswith("digraph deltaconvert {")
    page = (tmp_path / "a.html").read_text()
    assert "3 nodes, 0 million multiply-adds" in page
    assert "fuse" in page  # what the passes changed
