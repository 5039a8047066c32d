"""From which share of a lane on dense is faster, a kind of node: measured once on a machine.

What was measured lies beside the compiled code and expires with it. Where nothing can be kept, or
what is there cannot be read, it is measured anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import llvmlite.binding
import numba
import torch

from deltaconvert.atomic import written_whole
from deltaconvert.backends.cpu.compiling.jit import STAMP
from deltaconvert.errors import WriteError
from deltaconvert.processor import processor

NEVER = math.inf
# Of all measurements of a process, behind which none begins; of one, once a few rounds are made.
MOST_SECONDS, _ENOUGH_SECONDS = 2.0, 0.05
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 17  # in the first, memory is allocated and fetched
# One measurement differs from the next by as much: what is nearer to ours is not worth a change.
_PAYS = 0.8


class BreakEvens:
    """The break-evens of this machine.

    Args:
        folder: where they are kept; nothing to keep them for this process alone.
    """

    def __init__(self, folder: Path | None) -> None:
        """Read what is there."""
        self.path = folder / f"break-even-{_machine()}.json" if folder else None
        self._shares = self._read()
        self._lock = threading.Lock()
        self._spent, self._new = 0.0, False

    def share(self, kind: str, ways: Callable[[], tuple[Callable[[], object],
                                                        Callable[[], object]]]) -> float:
        """Return the share of a lane from which dense is faster; `NEVER` is too.

        Where all the time for measuring is spent, `NEVER`, until the next start.

        Args:
            kind: of the node.
            ways: makes what runs a whole lane our way, and dense.
        """
        with self._lock:
            if kind not in self._shares:
                if self._spent > MOST_SECONDS:
                    return NEVER
                made = ways()  # compiles, if need be
                start = time.perf_counter()
                share = break_even(*made)
                if share < _PAYS:  # it would change what is done: once more
                    share = max(share, break_even(*made))
                self._shares[kind], self._new = share, True
                self._spent += time.perf_counter() - start
            share = self._shares[kind]
            return share if share < _PAYS else NEVER

    def save(self) -> None:
        """Keep what was measured since, with what other processes have kept meanwhile."""
        with self._lock:
            if self.path and self._new:
                with suppress(WriteError), written_whole(self.path) as partial:
                    partial.write_text(json.dumps(self._read() | self._shares, indent=1), "utf-8")
            self._new = False

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_text("utf-8")) if self.path else {}
            return {kind: share for kind, share in found.items()
                    if isinstance(share, float) and share > 0}
        except (OSError, ValueError, AttributeError, RecursionError):  # a file of somebody else's
            return {}


def break_even(ours: Callable[[], object], dense: Callable[[], object]) -> float:
    """Return the share of a lane from which dense is faster, given what runs all of one.

    Our time is about proportional to the candidates, so that is the dense time over ours. (It may
    pay a little earlier, as dense has the ends of the candidates' rows to do as well.)
    """
    best, start = [math.inf, math.inf], time.perf_counter()
    for count in range(_MOST_ROUNDS):
        if count >= _FEWEST_ROUNDS and time.perf_counter() - start > _ENOUGH_SECONDS:
            break
        for way, run in enumerate((ours, dense)):
            before = time.perf_counter()
            run()  # the least counts: what else runs makes a step longer, and never shorter
            best[way] = min(best[way], time.perf_counter() - before)
    return best[1] / best[0]


def _machine() -> str:
    """Return what the times depend on, as a part of a file's name."""
    about = (processor(), llvmlite.binding.get_host_cpu_name(), os.cpu_count(), torch.__version__,
             numba.__version__, STAMP)
    return hashlib.sha1(repr(about).encode()).hexdigest()[:16]


@functools.cache
def of_this_machine(folder: Path | None) -> BreakEvens:
    """Return the break-evens that are kept in a folder."""
    return BreakEvens(folder)
