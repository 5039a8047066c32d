"""What is read of a file without its tensors, and how much memory all of it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert import CheckpointError
from deltaconvert.files import load, load_structure, read_header, save

ROOT = Path(__file__).resolve().parents[2]


def raw(header: dict[str, Any], tensors: bytes) -> bytes:
    """The bytes of a safetensors file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


@pytest.mark.parametrize("offsets", [[0, 16], [4, 20], [0, 12]])
def test_tensors_that_overlap_or_leave_gaps(offsets, path):
    """All that load reads is what the file says it is: no byte is in two tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    moved = next(t for name, t in header.items() if t.get("data_offsets", [0])[0] > 0)
    moved["data_offsets"] = offsets
    path.write_bytes(raw(header, data[8 + size:]))
    with pytest.raises(CheckpointError, match=r"m\.delta is damaged: "):
        load(path)


def test_read_header_reads_no_tensor(path, monkeypatch):
    data = bytearray(path.read_bytes())
    data[-3] ^= 64  # damage that only the weights show
    path.write_bytes(data)
    header = read_header(path)
    assert header.tensors["0.weight"] == ("F32", [4, 3, 3, 3])
    assert [r["op"] for r in header.model["graph"]][-1] == "output"
    with pytest.raises(CheckpointError, match="do not match its checksum"):
        load(path)


@pytest.mark.parametrize("data, message", [
    (b"", "is empty"), (b"PK\x03\x04 and more", r"is not a \.delta file"),
    ((10**9).to_bytes(8, "little") + b"{", f"claims a header of {10**9} bytes"),
    ((9).to_bytes(8, "little") + b"{no json}", "its header cannot be read"),
    (raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
     "not a converted model"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 1}'}}, b""), "no description of a model"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 9}'}}, b""), "format version 9"),
    (raw({"__metadata__": {"deltaconvert": '{"version": 1, "model": {}}'},
          "a": {"dtype": "F32", "data_offsets": [0, 0]}}, b""), "list of tensors cannot be read"),
])
def test_a_header_that_is_none(data, message, tmp_path):
    (tmp_path / "m.delta").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "m.delta")


MEASURE = """
import resource, sys, torch
from deltaconvert import load
load(sys.argv[1])  # imports, and what is allocated once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load(sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_loading_takes_no_more_than_twice_the_files_memory(path, tmp_path):
    large = tmp_path / "large.delta"
    save(deltaconvert.convert(nn.Linear(4000, 4000), backend="reference"), large)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(large)], text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2.1 * large.stat().st_size


class TestStructure:
    """`load_structure`: the model from its header, with zeros for weights."""

    def test_it_is_the_model_but_for_its_numbers(self, tmp_path):
        model = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
                              nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).eval()
        deltaconvert.save(deltaconvert.convert(model, threshold=0.5), tmp_path / "a.delta")
        found, whole = load_structure(tmp_path / "a.delta"), load(tmp_path / "a.delta")
        assert found.config == whole.config
        assert [(n, t.shape, t.dtype) for n, t in found.state_dict().items()] == [
            (n, t.shape, t.dtype) for n, t in whole.state_dict().items()]
        assert not any(t.any() for t in found.state_dict().values())
        assert str(found.graph) == str(whole.graph)

    def test_sizes_that_do_not_add_up_are_damage(self, tmp_path):
        deltaconvert.save(deltaconvert.convert(nn.Conv2d(3, 4, 3)), tmp_path / "a.delta")
        data = (tmp_path / "a.delta").read_bytes()
        (tmp_path / "a.delta").write_bytes(data.replace(b"[4,3,3,3]", b"[4,3,3,9]"))
        with pytest.raises(CheckpointError, match="its tensors are not of the sizes that it gives"):
            load_structure(tmp_path / "a.delta")
