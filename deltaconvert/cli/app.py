"""The application: its commands, and what becomes of errors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Annotated, Any

import typer

import deltaconvert
from deltaconvert.cli.bench import bench
from deltaconvert.cli.convert import convert
from deltaconvert.cli.demo import demo
from deltaconvert.cli.inspect import inspect
from deltaconvert.cli.validate import validate
from deltaconvert.errors import DeltaConvertError

INTERRUPTED = 130

app = typer.Typer(
    help="Compiles a trained CNN into one that computes only what changed from frame to frame.",
    epilog="Exit codes: 0 done and passed, 1 the check failed, 2 wrong usage or input, "
           "3 not supported, 130 interrupted.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None)


def _reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print the package's own errors as one message, and exit with their code."""
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DeltaConvertError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
    return wrapped


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deltaconvert {deltaconvert.__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[bool, typer.Option(
        "--version", help="Show the version and exit.", callback=_show_version,
        is_eager=True)] = False,
) -> None:
    """Compiles a trained CNN into one that computes only what changed from frame to frame."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


for _command in (demo, convert, validate, inspect, bench):
    app.command()(_reporting(_command))
