"""The container of a ``.delta`` file: its header, its checksum, and how it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from deltaconvert.errors import (
    CheckpointError,
    DamagedError,
    InputError,
    UnsupportedError,
    VersionError,
)
from deltaconvert.words import a_kind

KEY = "deltaconvert"
VERSION = 1
# Bytes. Parsed, a description takes many times its length; a network of 240 operators has
# 0.3 MB of it.
LARGEST_HEADER = 16_000_000
# What Python raises on JSON that has not the form it should have.
MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError,
             AssertionError, RecursionError)
Path_ = str | os.PathLike[str]


def as_path(path: Path_) -> Path:
    """Return a path as such.

    Raises:
        InputError: it is none.
    """
    try:
        return Path(path)
    except TypeError:
        raise InputError(f"the path is {a_kind(path)}: give the name of a file.") from None


@dataclass(frozen=True)
class Header:
    """What a file says of itself in its header, before any weight is read.

    Args:
        version: of the format.
        sha256: of the description and the tensors, as written; not checked here, since that
            needs the tensors.
        model: the description, see the package.
        tensors: dtype (as safetensors calls it) and shape, by name.
        nbytes: of the whole file.
        tensor_nbytes: of the tensors.
    """

    version: int
    sha256: str
    model: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]
    nbytes: int
    tensor_nbytes: int


def read_header(path: Path_) -> Header:
    """Read the header of a ``.delta`` file; the weights are left on the disk.

    Raises:
        CheckpointError: as `load`, but for what only the weights can tell.
    """
    path = as_path(path)
    with opened(path) as (file, head, size):
        text = head[8:] + file.read(int.from_bytes(head[:8], "little") - 1)
    header, told, end = _parse_header(text, path)
    if 8 + len(text) + end > size:
        raise _cut_off(path, size, 8 + len(text) + end)
    if not isinstance(told.get("model"), dict):
        raise damaged(path, "its header holds no description of a model")
    try:
        tensors = {name: (str(t["dtype"]), list(t["shape"])) for name, t in header.items()}
    except MALFORMED as error:
        raise damaged(path, "its list of tensors cannot be read") from error
    return Header(told["version"], str(told.get("sha256")), told["model"], tensors, size, end)


def pack(model: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = VERSION) -> bytes:
    """Return the bytes of a file."""
    from safetensors.torch import save as to_bytes

    told = {"version": version, "sha256": _checksum(model, version, tensors), "model": model}
    packed: bytes = to_bytes(dict(tensors), {KEY: json.dumps(told, allow_nan=False)})
    if int.from_bytes(packed[:8], "little") > LARGEST_HEADER:
        raise UnsupportedError("the description of this model is too large for a safetensors "
                               f"file: a header holds at most {LARGEST_HEADER} bytes.")
    return packed


def _checksum(model: Mapping[str, Any], version: int, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the description, and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([version, model], allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], bytes, int]]:
    """Open a file whose beginning is that of a safetensors file; give that, and its size."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(9), os.fstat(file.fileno()).st_size
            _check_head(head, path, size)
            yield file, head, size
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. Give a file that deltaconvert.save, "
                              "or deltaconvert convert, wrote.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


def _check_head(head: bytes, path: Path, size: int) -> None:
    header = int.from_bytes(head[:8], "little")
    if size == 0:
        raise DamagedError(f"{path} is empty (0 bytes): save or copy it again.")
    if head[8:] != b"{":
        raise CheckpointError(f"{path} is not a .delta file. Write one with "
                              "deltaconvert.save, or deltaconvert convert.")
    if header > LARGEST_HEADER:
        raise DamagedError(f"{path} is damaged: it claims a header of {header} bytes; "
                           f"{LARGEST_HEADER} is the most there can be. Copy it again.")
    if 8 + header > size:
        raise _cut_off(path, size, 8 + header)


def _parse_header(text: bytes, path: Path_) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return a header's tensors, what deltaconvert says in it, and where the last tensor ends."""
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
        told = json.loads(metadata[KEY]) if KEY in metadata else None
    except MALFORMED as error:
        raise damaged(path, "its header cannot be read") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is a safetensors file but not a converted model. Build its "
                              "model, load these weights, convert it, and save the result.")
    _check_version(told.get("version"), path)
    return header, told, end


def unpack(data: bytes, path: Path_) -> tuple[Any, dict[str, Tensor]]:
    """Return the description and the tensors of a file that is whole and undamaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    start = 8 + int.from_bytes(data[:8], "little")
    _, told, end = _parse_header(data[8:start], path)
    if start + end > len(data):
        raise _cut_off(path, len(data), start + end)
    try:
        tensors = from_bytes(data)
        checksum = _checksum(told["model"], VERSION, tensors)
    except (SafetensorError, *MALFORMED) as error:
        raise damaged(path, str(error)[:200]) from error
    if checksum != told.get("sha256"):
        raise damaged(path, "its contents do not match its checksum")
    return told["model"], tensors


def _cut_off(path: Path_, size: int, needed: int) -> DamagedError:
    return DamagedError(f"{path} is cut off: it has {size} of at least {needed} bytes. Copy or "
                        "download it again.")


def damaged(path: Path_, reason: str) -> DamagedError:
    """Return the error for a file whose contents are not as they were written."""
    return DamagedError(f"{path} is damaged: {reason}. Copy or download it again.")


def _check_version(version: Any, path: Path_) -> None:
    if type(version) is not int or version < 1:
        raise damaged(path, f"{version!r:.40} is no format version")
    if version > VERSION:
        raise VersionError(f"{path} has the format version {version:.6g}; this deltaconvert reads "
                           f"up to {VERSION}. Update it: pip install -U deltaconvert")
