"""Why a model cannot be traced, where, and what to do."""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import fx, nn

from deltaconvert.passes.tracing.find_state import KeepsState


def source_line(stack_trace: str | None) -> str:
    """Return the innermost line of a stack trace that is the user's, as ``file:line: code``."""
    lines = [line.strip() for line in (stack_trace or "").splitlines() if line.strip()]
    found = ""
    for position, line in enumerate(lines):
        file, _, rest = line[6:].partition('", line ')
        if line.startswith('File "') and not _is_ours(file):
            code = lines[position + 1] if position + 1 < len(lines) else ""
            found = _place(file, rest.partition(",")[0], code)
    return found


def line_of_user(frame: FrameType | None) -> str:
    """Return the same of what is being traced, from a frame outwards; of what traces, nothing."""
    while frame and _is_ours(frame.f_code.co_filename):
        frame = None if frame.f_code is fx.Tracer.trace.__code__ else frame.f_back
    if not frame:
        return ""
    file, number = frame.f_code.co_filename, frame.f_lineno
    return _place(file, number, linecache.getline(file, number).strip())


def _place(file: str, number: object, code: str) -> str:
    """Say where a line is, and what, unless its source is not there (``exec``)."""
    return f"{file}:{number}: {code}" if code else f"{file}:{number}"


_FOLDERS = tuple(f"{folder}{os.sep}" for folder in (
    Path(__file__).parents[1], Path(torch.__file__).parent))


def _is_ours(file: str) -> bool:
    # An exported program tells where PyTorch was on another machine.
    return file.startswith(_FOLDERS) or "-packages/torch/" in file


SHAPES_HELP = (" If it branches on shapes alone, give convert its example_inputs (on the command "
               "line --size).")


def explain_refusal(model: nn.Module, reason: Exception) -> str:
    """Say why a graph of a model would not say what it does."""
    whole = f"{type(model).__name__} cannot be converted whole: {reason}"
    if isinstance(reason, KeepsState):
        return (f"{whole}, and a converted model has only a past of its own. Take that as an input "
                "and return it, forward(x, state), or convert the parts that have none: "
                "modules='auto', or their paths.")
    return f"{whole}; or convert its parts: modules='auto', or their paths."


def explain(model: nn.Module, error: Exception, more: str = "") -> str:
    """Say at which of the user's own lines tracing failed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    place = ""
    if frames:
        last = frames[-1]
        code = last.line or linecache.getline(last.filename, last.lineno or 0).strip()
        place = f" at {_place(last.filename, last.lineno, code)}"
    children = [name for name, child in model.named_children()
                if next(child.parameters(), None) is not None]
    advice = (f"convert its parts, convert(model, modules='auto'), or a submodule instead, for "
              f"instance model.{children[0]} (of {', '.join(children[:8])}); on the command line, "
              "--model is then a function of yours that returns the submodule" if children
              else "rewrite that line")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    reason = reason.partition(". This can be attempted when")[0]  # FX goes on about its proxies
    return (f"{type(model).__name__} cannot be traced{place}: {reason}. Its forward depends on the "
            f"numbers in a tensor, or on code that tracing cannot follow; {advice}.{more}")
