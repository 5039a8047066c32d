"""Files that appear whole or not at all: written beside their place, then moved there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltaconvert.errors import WriteError

PARTIAL = ".partial"  # the end of the name of a file that is not whole yet


def partial_name(path: Path) -> Path:
    """Return an unused name beside a path, hidden, for what is to become the file there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; when the block ends, the file is moved to its place.

    A link is followed: what it points to is replaced. A device or a pipe is not: see
    `check_place`. Where the block raises, nothing is
    left. A process that is killed leaves the file under its other name, which ends in
    ``.partial``, and its place as it was.

    Raises:
        WriteError: the folder is missing or not writable, or the disk is full.
    """
    check_place(path)
    place = Path(os.path.realpath(path))
    partial = partial_name(place)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, place)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_text(path: Path | None, text: str) -> None:
    """Write a text, where a path is given.

    Raises:
        WriteError: where it cannot be written.
    """
    if path is not None:
        with written_whole(path) as partial:
            # Names of files may have bytes that are no text.
            partial.write_text(text, encoding="utf-8", errors="replace")


def check_place(path: Path) -> None:
    """Refuse what is no file: in the place of ``/dev/null`` a file would stay for everybody.

    Raises:
        WriteError: saying what it is.
    """
    if path.is_dir():
        raise WriteError(f"{path} cannot be written: it is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        raise WriteError(f"{path} cannot be written: it is a device or a pipe, and files appear "
                         "whole or not at all. Name a file; --json - is standard output.")


def unwritable(path: Path, error: OSError) -> WriteError:
    """Return the error for a file that the system refuses to write."""
    return WriteError(f"{path} cannot be written: {error.strerror or error}. Give a path in a "
                      "folder that exists, is writable and has room left.")
