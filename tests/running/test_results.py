"""Numbered folders and result files that are whole or not there."""

import json

import numpy as np
import pytest
import torch

from deltaconvert.errors import InputError, WriteError
from deltaconvert.running.results import LinesFile, NpzFile, fresh_folder, unique_names


def test_folders_are_numbered_and_never_reused(tmp_path):
    made = [fresh_folder(tmp_path / "runs").name for _ in range(2)]
    (tmp_path / "runs" / "run1").rmdir()
    (tmp_path / "runs" / "run9x").mkdir()
    assert [*made, fresh_folder(tmp_path / "runs").name] == ["run1", "run2", "run3"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(WriteError, match="runs is a file, and results need a folder"):
        fresh_folder(tmp_path / "runs")


def test_names_of_clips_as_names_of_files():
    names = ["plaza.avi", "cams/plaza.mp4", "a b:c.mp4", ".hidden", "...", "synthetic"]
    assert unique_names(names) == ["plaza", "plaza-2", "a_b_c", "hidden", "clip", "synthetic"]


def test_outputs_of_all_frames_are_one_array_each(tmp_path):
    file = NpzFile(tmp_path / "a.npz")
    frames = [torch.randn(1, 2, 3), torch.randn(1, 2, 3)]
    for number, frame in enumerate(frames):
        file.add([("out", frame), ("0.half", frame.bfloat16()), ("n", torch.tensor(number))])
        assert list(tmp_path.iterdir()) == []  # nothing has a name before it is whole
    assert file.finish() == tmp_path / "a.npz"
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays) == ["0.half", "n", "out"]
        assert np.array_equal(arrays["out"], torch.stack(frames).numpy())
        assert arrays["0.half"].dtype == np.float32
        assert arrays["n"].tolist() == [0, 1]


def test_without_frames_there_is_no_array_file(tmp_path):
    assert NpzFile(tmp_path / "a.npz").finish() is None
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_changing_shape_are_refused(tmp_path):
    file = NpzFile(tmp_path / "a.npz")
    file.add([("boxes", torch.zeros(2, 4))])
    with pytest.raises(InputError, match=r"output 'boxes' is float32 \[3, 4\] in frame 1, float32 "
                                         r"\[2, 4\] before: .*Use --postprocess"):
        file.add([("boxes", torch.zeros(3, 4))])
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_lines_get_their_name_when_they_are_whole(tmp_path):
    file = LinesFile(tmp_path / "a.jsonl")
    file.add({"frame": 0, "result": [1.5, float("nan")]})
    assert [p.name.endswith(".partial") for p in tmp_path.iterdir()] == [True]
    file.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"frame": 0, "result": [1.5, None]}


def test_what_is_no_json_is_refused(tmp_path):
    file = LinesFile(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="returned for frame 3 cannot be written as JSON"):
        file.add({"frame": 3, "result": torch.zeros(2)})
    file.discard()
    assert list(tmp_path.iterdir()) == []


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    npz, lines = NpzFile(tmp_path / "a.npz"), LinesFile(tmp_path / "a.jsonl")
    npz.add([("out", torch.zeros(3))])
    lines.add({"frame": 0})
    monkeypatch.setattr("os.replace", full)
    for file in (npz, lines):
        with pytest.raises(WriteError, match=r"a\.\w+ cannot be written: No space left on device"):
            file.finish()
        file.discard()
    assert list(tmp_path.iterdir()) == []
