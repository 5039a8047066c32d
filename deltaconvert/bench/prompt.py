"""Helpers that are there before anything is timed, as they are within a frame."""

from __future__ import annotations

import time

from deltaconvert.backends.cpu.workers import Help, Workers


class PromptWorkers(Workers):
    """Workers of which all have come when a run begins.

    A frame calls its helpers once and keeps them awake; a step that is run by itself would wait
    for them to be woken.

    Attributes:
        ready: `time.perf_counter` when all were there.
    """

    def __init__(self, threads: int) -> None:
        """See `Workers`."""
        super().__init__(threads)
        self.ready = 0.0
        self._inside: set[int] = set()

    def invite(self, help_with: Help) -> None:
        """Return when every helper is helping, maybe still from the run before."""
        def help_promptly(worker: int) -> None:
            self._inside.add(worker)
            help_with(worker)
            self._inside.discard(worker)

        super().invite(help_promptly)
        while len(self._inside) < self.threads - 1:
            time.sleep(0)  # a helper needs the interpreter to come
        self.ready = time.perf_counter()
