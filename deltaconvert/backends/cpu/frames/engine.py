"""What runs the compiled steps of one stream: their table, what it points to, and the helpers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from deltaconvert.backends.cpu.compiling.jit import SIGNATURE, Entry
from deltaconvert.backends.cpu.compiling.native import Kept
from deltaconvert.backends.cpu.frames.frame import GATE, OVER, Session, run_steps, serve
from deltaconvert.backends.cpu.frames.team import is_there, new_team, run_with_team
from deltaconvert.backends.cpu.frames.workers import Help, Workers, set_own_threads
from deltaconvert.state import State


class Engine:
    """The table of a stream's compiled steps.

    Attributes:
        workers: the pool that helps.
        errors: what Python raised inside a compiled step; raised again when it is over.
        refused: see `Session`.
        calls_python: whether a step does.
        with_pytorch: PyTorch's threads help, see `team`; settled before a frame is run.
    """

    def __init__(self, workers: Workers) -> None:
        """Start with an empty table."""
        self.workers = workers
        self.errors: list[BaseException] = []
        self.refused = np.zeros(1, np.int64)
        self.calls_python = False
        self.with_pytorch = False
        self._rows: list[tuple[int, int, int, int]] = []
        self._kept: list[Any] = []
        self._shared: dict[str, Any] = {}
        self._session: tuple[Kept, Help] | None = None
        self._team: Kept | None = None

    def keep(self, value: Any) -> Kept:
        """Put a tuple into memory for as long as the engine lives."""
        kept = Kept(value)
        self._kept.append(kept)
        return kept

    def shared(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what was made under a key, or make it."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def add(self, head: Any, work: Entry, task: Any, prepare: Entry | None = None) -> int:
        """Add a step to the table; return its place.

        Args:
            head: its `Head`; nothing for a step that is no node's.
            work: called by every worker, with the task's address and the worker's number.
            task: a tuple.
            prepare: called before, with the number of workers.
        """
        self._rows.append((self.keep(head).address if head else 0,
                           prepare.address if prepare else 0, work.address,
                           self.keep(task).address))
        self._session = None
        return len(self._rows) - 1

    def _begin(self) -> tuple[Kept, Help]:
        """Return a session of the table as it is now, and what its helpers do.

        Its gate is its own: a helper that is late to leave an older one must not come in with that
        one's table. The older one lives for as long as a helper holds it.
        """
        _ = serve.address  # compiled here: a helper would do it while frames go by
        table = np.array(self._rows, np.int64).reshape(-1, 4)
        session = Kept(Session(table, np.zeros(GATE + 8, np.int64), self.workers.threads,
                               self.refused))
        return session, lambda worker: serve(session.address, worker)

    def _new_team(self, session: Kept) -> Kept:
        return Kept(new_team(run_steps.address, serve.address, session.address))

    def callback(self, function: Callable[[int], None]) -> int:
        """Return the address of an entry that calls Python with the number of the worker."""
        errors = self.errors  # not the engine: it would keep itself, and a stream's memory

        def call(_: int, worker: int) -> None:
            try:
                with torch.inference_mode():
                    function(worker)
            except BaseException as error:  # an interrupt too: it must not end in compiled code
                errors.append(error)

        entry = SIGNATURE(call)
        self._kept.append(entry)
        self.calls_python = True
        return ctypes.c_void_p.from_buffer(entry).value or 0  # `cast` would have it keep itself

    def run(self, first: int, last: int, share: bool = True) -> None:
        """Run the steps from ``first`` up to ``last``, exclusive.

        Args:
            first, last: places in the table.
            share: whether there is work for helpers.
        """
        if self._session is None:
            self._session = self._begin()
            self._team = self._new_team(self._session[0]) if self.with_pytorch else None
        session, help_with = self._session
        gate, before = session.value.gate, 1
        try:
            if share:
                gate[OVER] = 0  # before anybody looks: who finds it over is gone
            if share and self._team is not None and is_there(self.workers.threads):
                # Within it, PyTorch starts no threads.
                run_with_team(self._team, first << 32 | last, self.workers.threads)
            else:
                if share:
                    self.workers.invite(help_with)
                if self.calls_python and (before := torch.get_num_threads()) != 1:
                    set_own_threads(1)  # the workers are threads enough
                run_steps(session.address, first << 32 | last)
        finally:  # an interrupt may come at any line
            gate[OVER] = 1
            if before != 1:
                set_own_threads(before)
        if self.errors:
            error = self.errors[0]
            self.errors.clear()
            raise error


def engine_of(state: State, workers: Workers) -> Engine:
    """Return the engine of a stream."""
    if state.context is None:
        state.context = Engine(workers)
    engine: Engine = state.context
    return engine
