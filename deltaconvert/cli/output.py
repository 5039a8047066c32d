"""What a command leaves behind: text, JSON, progress; files whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import typer

from deltaconvert.atomic import check_place, write_text
from deltaconvert.checking.report import jsonable
from deltaconvert.errors import ClipError, WriteError

Item = TypeVar("Item")

STDOUT = Path("-")
UNREAD = 141  # as shells call the end by SIGPIPE, which Python ignores
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def saying(quiet: bool, json: bool = False) -> Iterator[None]:
    """Run a command that prints, or prints nothing but errors, or JSON alone."""
    token, logger = _QUIET.set(quiet or json), logging.getLogger("deltaconvert")
    level = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        _QUIET.reset(token)


def say(text: object = "") -> None:
    """Print to standard output, unless the command is to be quiet."""
    if not _QUIET.get():
        _print(f"{text}\n")


def note(line: str) -> None:
    """Say on standard error how far a command is, unless it is to be quiet."""
    if not _QUIET.get():
        _echo(f"{line}\n", err=True)


def _print(text: str) -> None:
    try:
        _echo(text)
    except OSError as error:
        raise unprinted(error) from error


def unprinted(error: OSError) -> Exception:
    """Return what to raise where standard output cannot be written."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left is not tried again
    if isinstance(error, BrokenPipeError):
        return typer.Exit(UNREAD)  # whoever reads has enough, and that is no error
    return WriteError(f"standard output cannot be written: {error.strerror or error}. Write to a "
                      "file that has room left, or say --quiet.")


def complain(message: str) -> None:
    """Print an error or a warning; its first word in colour on a terminal."""
    head, separator, rest = message.partition(": ")
    colour = {"error": typer.colors.RED, "warning": typer.colors.YELLOW}.get(head)
    _echo((coloured(head, colour, sys.stderr) + separator + rest if colour else message) + "\n",
          err=True)


def _echo(text: str, err: bool = False) -> None:
    """Print, with question marks for what the terminal has no letters for: names are any bytes."""
    try:
        typer.echo(text, nl=False, err=err)
    except UnicodeEncodeError:
        encoding = (sys.stderr if err else sys.stdout).encoding
        typer.echo(text.encode(encoding, "replace").decode(encoding), nl=False, err=err)


def verdict(text: str) -> str:
    """Colour a text's last line, on a terminal: green where it passed, red where it failed."""
    body, newline, last = text.rpartition("\n")
    colour = {"PASSED": typer.colors.GREEN, "FAILED": typer.colors.RED}.get(last.split(" ")[0])
    return body + newline + (coloured(last, colour, sys.stdout) if colour else last)


def coloured(text: str, colour: str, stream: Any) -> str:
    """Return a text in colour where the stream is a terminal and nobody forbade it."""
    plain = (not is_terminal(stream) or os.environ.get("NO_COLOR")
             or os.environ.get("TERM") == "dumb")
    return text if plain else typer.style(text, fg=colour, bold=True)


def is_terminal(stream: Any) -> bool:
    """Whether somebody sits there; Python has no stream at all where the shell closed it."""
    return stream is not None and stream.isatty()


def check_writable(*paths: Path | None, json: Path | None = None,
                   read: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file that could not be written, before the work that it is to hold.

    Args:
        *paths: what a command writes, each of its own name.
        json: and its JSON, which alone may go to standard output, by the name ``-``.
        read: what it reads, which must not be lost.

    Raises:
        WriteError: the folder is missing, the path is a folder, or another one of these.
    """
    taken = {os.path.realpath(path) for path in read if path is not None}
    if STDOUT in paths:
        raise WriteError("- is standard output, which is for --json alone. Name a file.")
    for path in (*paths, json):
        if path is None or path == STDOUT:
            continue
        if (place := os.path.realpath(path)) in taken:
            raise WriteError(f"{path} cannot be written: this command reads it, or writes "
                             "something else there. Give another name.")
        if not os.path.exists(place) or os.path.isfile(place):  # not a device
            taken.add(place)
        folder = path.absolute().parent
        if not folder.is_dir():
            raise WriteError(f"{path} cannot be written: there is no folder {folder}. Make it.")
        check_place(path)
        if not os.access(folder, os.W_OK):
            raise WriteError(f"{path} cannot be written: no permission in {folder}. Give another.")


def write_json(path: Path | None, data: Any) -> None:
    """Write plain data as JSON, where a path is given; ``-`` is standard output.

    Raises:
        WriteError: where it cannot be written.
    """
    if path is None:
        return
    text = json.dumps(jsonable(data), indent=2, allow_nan=False) + "\n"
    if path == STDOUT:
        _print(text)
    else:
        write_text(path, text)


def shows_progress() -> bool:
    """Whether there is a terminal to show a bar on, and it is wanted."""
    return is_terminal(sys.stderr) and not _QUIET.get()


def with_progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a bar on a terminal's error output that disappears at the end."""
    if not shows_progress():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=what, total=total, transient=True,
                     console=Console(stderr=True))


class UntilBroken:
    """Items of a source up to where it breaks off; what was read counts, ``error`` says the rest.

    A source that breaks before its first item raises as it does.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        """Take the items of any iterable."""
        self.items = items
        self.error: ClipError | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin with the first."""
        number = 0
        try:
            for item in self.items:
                yield item
                number += 1
        except ClipError as error:
            if number == 0:
                raise
            self.error = error
