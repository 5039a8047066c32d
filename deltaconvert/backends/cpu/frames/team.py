"""PyTorch's own threads as helpers, for frames of compiled steps with PyTorch's operators between.

For some milliseconds behind each operator, the threads of PyTorch's OpenMP team watch for the next
one, on the cores that the helpers of `workers` need: compiled steps in between have one core.
So the team runs them as well: it is awake, and where PyTorch's next operator wants it.

A team waits for each of its threads, those that other programs keep from running too. That is no
loss where PyTorch's operators do the same, and why other frames have helpers of their own.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deltaconvert.backends.cpu.compiling.jit import entry
from deltaconvert.backends.cpu.compiling.native import Longs, call, layout, read, take
from deltaconvert.backends.cpu.frames.workers import TEAM_NUMBERS
from deltaconvert.nodes import DeltaNode

_MEMBERS, _STEPS = 0, 1


class Team(NamedTuple):
    """What a team is told.

    Args:
        run, serve: addresses of `frame.run_steps` and `frame.serve`.
        session: what both are called with.
        numbers: int64 ``[2]``: how many have come, and which steps the first runs.
    """

    run: int
    serve: int
    session: int
    numbers: Longs


_TEAM = layout(Team)


@entry
def _join(address, _):
    """Run the steps, or help; OpenMP gives the address alone."""
    team = read(address, _TEAM)
    worker = take(team.numbers.ctypes.data + 8 * _MEMBERS, 1)
    if worker == 0:
        call(team.run, team.session, team.numbers[_STEPS])
    else:
        call(team.serve, team.session, worker)


def run_with_team(team: Any, steps: int, threads: int) -> None:
    """Run steps with PyTorch's threads; return when all have left.

    Args:
        team: a `Kept` `Team`.
        steps: see `frame.run_steps`.
        threads: of the team, the caller among them.
    """
    team.value.numbers[:] = 0, steps
    parallel = _parallel()
    assert parallel is not None
    parallel(_join.address, team.address, threads, 0)


def new_team(run: int, serve: int, session: int) -> Team:
    """Return what a team is told of a session; what it runs is compiled here."""
    _ = _join.address
    return Team(run, serve, session, np.zeros(2, np.int64))


def shares_with_pytorch(others: Iterable[DeltaNode], threads: int) -> bool:
    """Whether a team is better than helpers: PyTorch uses it for some of the nodes that it runs."""
    return threads > 1 and is_there(threads) and any(
        _is_large(node) for node in others) and _parallel() is not None


def is_there(threads: int) -> bool:
    """Whether PyTorch would give its next operator so many threads, asked before each run.

    OpenMP would end and start some around every operator where the number has changed since. Where
    PyTorch is told to take one in a process that was forked, as a DataLoader's are, a team would
    wait for threads that the parent has.
    """
    return torch.get_num_threads() == threads


def _is_large(node: DeltaNode) -> bool:
    return any(spec.shape is not None and math.prod(spec.shape) > TEAM_NUMBERS
               for spec in (*node.about.inputs, node.about.output))


@functools.cache
def _parallel() -> Any:
    """Return how OpenMP begins a parallel region, in the library that PyTorch calls; if it does."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        begin = ctypes.CDLL(str(library)).GOMP_parallel  # looked for in what PyTorch is linked to
    except (OSError, AttributeError):
        return None
    begin.argtypes = [ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_uint, ctypes.c_uint]
    begin.restype = None
    return begin
