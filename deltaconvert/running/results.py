"""A fresh folder for results, and the files in it, each whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from deltaconvert.atomic import partial_name, unwritable
from deltaconvert.checking.report import jsonable
from deltaconvert.errors import InputError, WriteError

MOST_FOLDERS = 100_000
COPY_BYTES = 1 << 20


def fresh_folder(parent: Path) -> Path:
    """Make the next of ``parent/run1``, ``parent/run2`` ...; two processes get two folders.

    Raises:
        WriteError: where it cannot be made.
    """
    if parent.is_file():
        raise WriteError(f"{parent} is a file, and results need a folder. Give another name.")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(m[1]) for p in parent.iterdir() if (m := re.fullmatch(r"run(\d+)", p.name))]
        for number in range(max(taken, default=0) + 1, MOST_FOLDERS):
            try:
                (parent / f"run{number}").mkdir()
                return parent / f"run{number}"
            except FileExistsError:
                continue
        raise OSError(errno.EMLINK, "all numbers are taken")
    except OSError as error:
        raise unwritable(parent / "run1", error) from error


def unique_names(names: Sequence[str]) -> list[str]:
    """Return file names without suffix, one a clip: ``plaza``, ``plaza-2``."""
    made: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.+-]+", "_", Path(name).stem).strip("._") or "clip"
        number = 1
        while (unique := stem if number == 1 else f"{stem}-{number}") in made:
            number += 1
        made.append(unique)
    return made


class NpzFile:
    """Outputs as one ``.npz``: for each output an array ``[frames, ...]``.

    Frames wait in files without a name, so that a process that is killed leaves none.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path; nothing is written before the first frame."""
        self.path = path
        self.frames = 0
        self._waiting: dict[str, tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]] = {}

    def add(self, outputs: Sequence[tuple[str, Tensor]]) -> None:
        """Add one frame's outputs, by name.

        Raises:
            InputError: an output has another shape than in the frames before.
            WriteError: the disk is full.
        """
        for name, tensor in outputs:
            array = _as_numpy(tensor)
            if self.frames == 0:
                self._waiting[name] = self._temporary(), array.dtype, array.shape
            file, dtype, shape = self._waiting[name]
            if (array.dtype, array.shape) != (dtype, shape):
                raise InputError(
                    f"output {name!r} is {array.dtype} {list(array.shape)} in frame {self.frames}, "
                    f"{dtype} {list(shape)} before: an .npz holds arrays of one shape. Use "
                    "--postprocess, whose results are JSON lines, or --save none.")
            try:
                file.write(np.ascontiguousarray(array).tobytes())
            except OSError as error:
                raise unwritable(self.path, error) from error
        self.frames += 1

    def _temporary(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(dir=self.path.parent)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def finish(self) -> Path | None:
        """Put the file in its place; None where there was no frame.

        Raises:
            WriteError: the disk is full.
        """
        if not self._waiting:
            return None
        partial = partial_name(self.path)
        try:
            with zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as archive:
                for name, (file, dtype, shape) in self._waiting.items():
                    self._store(archive, name, file, dtype, shape)
            os.replace(partial, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            partial.unlink(missing_ok=True)
            self.discard()
        return self.path

    def _store(self, archive: zipfile.ZipFile, name: str, file: IO[bytes], dtype: np.dtype[Any],
               shape: tuple[int, ...]) -> None:
        # Python's zip files have no limit of 4 GB where that is said beforehand.
        with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, {
                "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                "shape": (self.frames, *shape)})
            # A frame that was cut off by a full disk or Ctrl-C does not count.
            left = self.frames * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            file.seek(0)
            while left > 0:
                part = file.read(min(COPY_BYTES, left))
                if not part:
                    raise OSError(errno.EIO, "what was kept for it is gone")
                entry.write(part)
                left -= len(part)

    def discard(self) -> None:
        """Forget the frames."""
        for file, _, _ in self._waiting.values():
            file.close()
        self._waiting.clear()


def _as_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array


class LinesFile:
    """JSON lines: one object a frame, in a file that gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        """Open a file beside the path.

        Raises:
            WriteError: where that cannot be written.
        """
        self.path = path
        self._partial = partial_name(path)
        try:
            self._file = open(self._partial, "x", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise unwritable(path, error) from error

    def add(self, record: dict[str, Any]) -> None:
        """Write one frame's.

        Raises:
            InputError: the post-processing returned what JSON has not.
            WriteError: the disk is full.
        """
        try:
            line = json.dumps(jsonable(record), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"what --postprocess returned for frame {record.get('frame')} cannot "
                             f"be written as JSON ({error}): return dicts, lists, numbers and "
                             "strings; tensor.tolist() makes them.") from None
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def finish(self) -> Path:
        """Put the file in its place."""
        try:
            self._file.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return self.path

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder of results that got none."""
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


