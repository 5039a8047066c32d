"""Helpers that are there before anything is timed, as they are within a frame."""

from __future__ import annotations

import ctypes
import os
import sys
import time

from deltaconvert.backends.cpu.frames.workers import Help, Workers


class PromptWorkers(Workers):
    """Workers of which all have come, each to a core of its own, when a run begins.

    A frame calls its helpers once and keeps them awake, and the system soon moves them apart. A
    step that is run by itself would wait for them to be woken, and is over before the system moves
    one that was woken on the caller's core (as it is behind a dense operator, whose threads spin
    on the others).

    Attributes:
        ready: `time.perf_counter` when all were there.
    """

    def __init__(self, threads: int) -> None:
        """See `Workers`."""
        super().__init__(threads)
        self.ready = 0.0
        self._cores = [-1] * threads
        self._inside: set[int] = set()

    def invite(self, help_with: Help) -> None:
        """Return when every helper is helping, maybe still from the run before."""
        def help_promptly(worker: int) -> None:
            self._move_apart(worker)
            self._inside.add(worker)
            help_with(worker)
            self._inside.discard(worker)

        self._cores[0] = core()
        super().invite(help_promptly)
        while len(self._inside) < self.threads - 1:
            time.sleep(0)  # a helper needs the interpreter to come
        self.ready = time.perf_counter()

    def _move_apart(self, worker: int) -> None:
        """Move the caller, a worker, from a core that it shares with another."""
        others = {*self._cores[:worker], *self._cores[worker + 1:]}
        if sys.platform == "linux" and core() in others:
            allowed = os.sched_getaffinity(0)
            if free := allowed - others:
                os.sched_setaffinity(0, free)
                os.sched_setaffinity(0, allowed)  # it stays until the system has a reason
        self._cores[worker] = core()


def core() -> int:
    """Return the number of the core that the caller runs on; -1 where only the system knows."""
    return int(ctypes.CDLL(None).sched_getcpu()) if sys.platform == "linux" else -1
