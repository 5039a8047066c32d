"""Files and progress: what a command leaves behind, whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from deltaconvert.errors import InputError
from deltaconvert.report import jsonable

Item = TypeVar("Item")


def check_writable(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before the work that it is to hold.

    Raises:
        InputError: the folder is missing, or the path is a folder.
    """
    for path in paths:
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {folder}. Make it.")
        if path.is_dir():
            raise InputError(f"{path} cannot be written: it is a folder. Name a file in it.")
        if not os.access(folder, os.W_OK):
            raise InputError(f"{path} cannot be written: no permission in {folder}.")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written under another name beside it, then put it in its place."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.",
                                    suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp's own are for the owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path | None, data: Any) -> None:
    """Write plain data as JSON, where a path is given."""
    if path is not None:
        text = json.dumps(jsonable(data), indent=2, allow_nan=False) + "\n"
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def with_progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a bar on a terminal's error output that disappears at the end."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=what, total=total, transient=True,
                     console=Console(stderr=True), disable=not sys.stderr.isatty())
