"""Files that are damaged, cut off, not ours, or cannot be written."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaconvert import CheckpointError, InputError
from deltaconvert.files import container, load, load_structure, read_header, save


def test_a_file_that_is_cut_off(path):
    data = path.read_bytes()
    for length in (9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=rf"is cut off: it has {length} of at least"):
            load(path)


def test_a_file_with_a_flipped_bit(path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(0, header, 41), *range(header, len(data), 29), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.delta (is|has)"):
            load(path)


def test_a_flipped_weight_is_told_as_damage(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its contents do not match its checksum"):
        load(path)


def test_a_newer_version(path):
    model, tensors = container.unpack(path.read_bytes(), path)
    path.write_bytes(container.pack(model, tensors, 2))
    with pytest.raises(CheckpointError, match=r"format version 2; .* up to 1. Update it"):
        load(path)


@pytest.mark.parametrize("data, message", [
    (b"", "is empty"),
    (b"PK\x03\x04 and more", r"is not a \.delta file"),
    (b"{}", r"is not a \.delta file"),
    ((10**15).to_bytes(8, "little") + b"{", f"claims a header of {10**15} bytes"),
    ((10**7).to_bytes(8, "little") + b"{", "is cut off"),
    ((9).to_bytes(8, "little") + b"{no json}", "its header cannot be read"),
    ((5000).to_bytes(8, "little") + b'{"a":' + b"[" * 4995, "its header cannot be read"),
])
def test_what_is_no_delta_file(data, message, tmp_path):
    (tmp_path / "m.delta").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.delta")


def test_no_file_a_folder_and_plain_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"m\.delta does not exist"):
        load(tmp_path / "m.delta")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load(tmp_path)
    save_file({"weight": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="is a safetensors file but not a converted model"):
        load(tmp_path / "w.safetensors")


def test_what_cannot_be_written(path, tmp_path):
    delta = load(path)
    (tmp_path / "file").write_text("")
    for target, reason in ((tmp_path / "none" / "m.delta", "No such file or directory"),
                           (tmp_path / "file" / "m.delta", "Not a directory"),
                           (tmp_path, "it is a folder")):
        with pytest.raises(InputError, match=f"cannot be written: {reason}"):
            save(delta, target)
    with pytest.raises(InputError, match="save takes a converted model, not a Conv2d"):
        save(nn.Conv2d(3, 4, 3), path)  # type: ignore[arg-type]
    for act in (load, load_structure, read_header, lambda none: save(delta, none)):
        with pytest.raises(InputError, match="the path is None: give the name of a file"):
            act(None)


def test_a_pipe_or_a_device_is_not_replaced(path, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for place in (pipe, link):
        with pytest.raises(InputError, match="cannot be written: it is a device or a pipe"):
            save(load(path), place)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_write_that_fails_leaves_the_old_file(path, tmp_path, monkeypatch):
    delta, before = load(path), path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(delta, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_what_a_link_points_to_with_ordinary_permissions(path, tmp_path):
    (tmp_path / "plain").write_text("")
    link = tmp_path / "link.delta"
    link.symlink_to(path)
    delta = load(path)
    path.write_text("old")
    save(delta, link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    load(path)



