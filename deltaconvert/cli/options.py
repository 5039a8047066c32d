"""Flags that several commands share; those of the settings are read off `Config`.

Names, defaults and help of the settings' flags come from `Config` and its docstring, so
that a new setting is a flag without another line.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from deltaconvert.config import Config, NodeConfig
from deltaconvert.errors import InputError

SETTINGS = "Settings"

JsonFile = Annotated[Path | None, typer.Option(
    "--json", metavar="FILE", help="Write what is printed as JSON; - prints it instead.")]
TrustPickle = Annotated[bool, typer.Option(
    "--trust-pickle", help="Run the code that a checkpoint names when it is read.")]
IgnoreSurplus = Annotated[bool, typer.Option(
    "--ignore-surplus", help="Leave out weights that the model has no place for.")]
ReportFile = Annotated[Path | None, typer.Option(
    "--report", metavar="HTML", help="Write one page with tables and plots.")]
ModelArgs = Annotated[list[str] | None, typer.Option(
    "--model-arg", metavar="NAME=VALUE", help="Argument for the model's factory; repeats.")]


def settings_as_flags(only: Sequence[str] | None = None) -> Callable[..., Callable[..., Any]]:
    """Give a command with a parameter ``config`` a flag for each setting in its place.

    With ``only``, flags for these settings alone, without defaults; then ``config`` is a
    dict of those that were given.
    """
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = [f for f in dataclasses.fields(Config) if only is None or f.name in only]

        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            own = {f.name: given.pop(_parameter_name(f.name)) for f in fields}
            if "nodes" in own:
                own["nodes"] = parse_nodes(own["nodes"] or ())
            if only is None:
                return command(config=Config(**own), **given)
            return command(config={k: v for k, v in own.items() if v is not None}, **given)

        _set_signature(wrapped, command, [_flag(f, only is not None) for f in fields])
        return wrapped
    return decorate


def flags_of(kind: type[Any], parameter: str) -> Callable[..., Callable[..., Any]]:
    """Give a command with this parameter a flag for each field of a dataclass in its place."""
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names = [f.name for f in dataclasses.fields(kind)]
        hints = typing.get_type_hints(kind, include_extras=True)

        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            own = {name: given.pop(name) for name in names}
            return command(**{parameter: kind(**own)}, **given)

        _set_signature(wrapped, command, [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
                              annotation=hints[f.name]) for f in dataclasses.fields(kind)],
            parameter)
        return wrapped
    return decorate


def _set_signature(wrapped: Callable[..., Any], command: Callable[..., Any],
                   flags: list[inspect.Parameter], replaced: str = "config") -> None:
    hints = typing.get_type_hints(command, include_extras=True)
    own = [p.replace(annotation=hints.get(p.name, p.annotation),
                     kind=inspect.Parameter.KEYWORD_ONLY)
           for p in inspect.signature(command).parameters.values() if p.name != replaced]
    parameters = own + flags
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}


def _parameter_name(setting: str) -> str:
    return "node" if setting == "nodes" else setting


def _flag(field: dataclasses.Field[Any], unset: bool) -> inspect.Parameter:
    name = _parameter_name(field.name)
    kind = typing.get_type_hints(Config)[field.name]
    plain = next((k for k in get_args(kind) if k is not types.NoneType), kind) if (
        get_origin(kind) in (typing.Union, types.UnionType)) else kind
    extra: dict[str, Any] = {"help": _help()[field.name], "rich_help_panel": SETTINGS}
    declared = f"--{name.replace('_', '-')}"
    default = None if unset or field.default is dataclasses.MISSING else field.default
    if name == "node":
        plain, extra["metavar"], extra["help"] = list[str], "PATTERN=THRESHOLD", (
            "Threshold of the nodes whose name or module path matches; repeats, the last wins.")
    elif get_origin(plain) is Literal:
        plain, extra["metavar"] = str, "|".join(get_args(plain))
    elif plain is bool:
        declared = f"{declared}/--no-{declared[2:]}"
    annotation = plain if default is not None else plain | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default,
                             annotation=Annotated[annotation, typer.Option(declared, **extra)])


@functools.cache
def _help() -> dict[str, str]:
    """Read each setting's description out of the docstring of `Config`."""
    text = inspect.cleandoc(Config.__doc__ or "").partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    described = {name: re.sub(r"\s+", " ", said).replace("``", "") for name, said in found}
    return {f.name: described.get(f.name, "") for f in dataclasses.fields(Config)}


def parse_nodes(items: Sequence[str]) -> dict[str, NodeConfig]:
    """Read ``PATTERN=THRESHOLD`` items.

    Raises:
        InputError: naming the item that is not one.
    """
    nodes: dict[str, NodeConfig] = {}
    for item in items:
        pattern, _, number = item.rpartition("=")
        try:
            threshold = float(number)
        except ValueError:
            pattern = ""
        if not pattern:
            raise InputError(f"--node {item!r}: give PATTERN=THRESHOLD, as in 'layer1.*=0.1'.")
        nodes.pop(pattern, None)  # the last one given is the last one asked
        nodes[pattern] = NodeConfig(threshold=threshold)
    return nodes


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HxW``.

    Raises:
        InputError: where it is not two whole numbers above 0.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InputError(f"--size {text!r}: give height x width in pixels, as in 360x640.")
    return int(height), int(width)


def parse_numbers(flag: str, text: str | None) -> list[float] | None:
    """Read numbers with commas between them.

    Raises:
        InputError: naming the flag.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text!r}: give numbers with commas between, one a channel, "
                         "as in 0.485,0.456,0.406.") from None
