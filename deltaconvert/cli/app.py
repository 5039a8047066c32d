"""The application: its commands, and what becomes of errors."""

from __future__ import annotations

import functools
import inspect
import logging
import signal
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Annotated, Any

import typer
import typer.core

import deltaconvert
from deltaconvert.cli.bench import bench
from deltaconvert.cli.convert import convert
from deltaconvert.cli.demo import demo
from deltaconvert.cli.doctor import doctor, versions
from deltaconvert.cli.inspect import inspect as inspect_command
from deltaconvert.cli.output import STDOUT, complain, saying, unprinted
from deltaconvert.cli.run import run
from deltaconvert.cli.tune import tune
from deltaconvert.cli.validate import validate
from deltaconvert.errors import (
    DeltaConvertError,
    UnsupportedError,
    lacks_memory,
    missing_package,
)

OF_A_SIGNAL = 128  # and its number, as shells say it
INTERRUPTED = OF_A_SIGNAL + signal.SIGINT
ENDINGS = {INTERRUPTED: "interrupted", OF_A_SIGNAL + signal.SIGTERM: "terminated"}


class Telling:
    """A command that says it where its help or its version cannot be printed."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the words of the command line; some are answered at once."""
        with _reported():
            try:
                return super().make_context(*args, **kwargs)  # type: ignore[misc]
            except OSError as error:
                raise unprinted(error) from error


class Command(Telling, typer.core.TyperCommand):
    """One command."""


class Group(Telling, typer.core.TyperGroup):
    """All of them."""


app = typer.Typer(
    cls=Group,
    help="Compiles a trained CNN into one that computes only what changed from frame to frame.",
    epilog="Exit codes: 0 done and passed, 1 the check failed, 2 wrong usage or input, "
           "3 not supported, 130 interrupted, 141 output not read, 143 terminated.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode=None)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --quiet, and report its errors."""
    @functools.wraps(command)
    def wrapped(quiet: bool = False, **given: Any) -> Any:
        with _reported(), saying(quiet, given.get("json") == STDOUT):
            return command(**given)

    hints = typing.get_type_hints(command, include_extras=True)
    own = [p.replace(annotation=hints.get(p.name, p.annotation),
                     kind=inspect.Parameter.KEYWORD_ONLY)
           for p in inspect.signature(command).parameters.values()]
    flag = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False,
                             annotation=Quiet)
    wrapped.__signature__ = inspect.Signature([*own, flag])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*own, flag]}
    return wrapped


@contextmanager
def _reported() -> Iterator[None]:
    """Print the package's own errors as one message, and exit so."""
    with _noting_signals() as signalled:
        try:
            yield
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            code = OF_A_SIGNAL + signalled() if signalled() else _exit_code(error)
            if not code:
                raise
            complain(ENDINGS.get(code) or f"error: {_in_words(error)}")
            raise typer.Exit(code) from None


@contextmanager
def _noting_signals() -> Iterator[Callable[[], int]]:
    """Tell which signal came: a library that Ctrl-C stops in an import may swallow it, and fail.

    What `kill` sends ends a command as Ctrl-C does, so that files that are not whole are removed.
    """
    seen = 0

    def note(number: int, frame: Any) -> None:
        nonlocal seen
        seen = number
        raise KeyboardInterrupt

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler,
                                        signal.SIGTERM: signal.SIG_DFL}
    mine = [number for number, handler in usual.items()
            if current_thread() is main_thread() and signal.getsignal(number) == handler]
    for number in mine:
        signal.signal(number, note)
    try:
        yield lambda: seen
    finally:
        for number in mine:
            signal.signal(number, usual[number])


def _exit_code(error: BaseException) -> int:
    """Return what an error ends the program with; 0 where it is a fault of this package."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DeltaConvertError):
        return error.exit_code
    if missing_package(error):
        return UnsupportedError.exit_code
    return DeltaConvertError.exit_code if lacks_memory(error) else 0


def _in_words(error: BaseException) -> str:
    if isinstance(error, DeltaConvertError):
        return str(error)
    if missing := missing_package(error):
        return f"this needs {missing}"
    return ("there is not enough memory. Give smaller frames (--size), fewer lanes, or a machine "
            "with more.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(versions(deltaconvert.__version__))
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[bool, typer.Option(
        "--version", help="Show versions, backend and device, and exit.", callback=_show_version,
        is_eager=True)] = False,
) -> None:
    """Compiles a trained CNN into one that computes only what changed from frame to frame."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


for _command, _name, _short in (  # of so few letters that the list of commands cuts none
        (demo, "demo", "Make a clip, convert, validate and report; needs no files."),
        (convert, "convert", "Compile a checkpoint, or a program, into a .delta file."),
        (validate, "validate", "Compare with the dense network, frame by frame."),
        (tune, "tune", "Find thresholds for an error that you allow."),
        (run, "run", "Run over videos or pictures: times, results, overlays."),
        (inspect_command, "inspect", "Show the graph, and what runs dense and why."),
        (bench, "bench", "Time it beside the dense runtimes."),
        (doctor, "doctor", "Say what is installed, what works and what is missing.")):
    app.command(_name, cls=Command, short_help=_short)(_reporting(_command))
