"""A small pool of threads that help with compiled frames.

Not an OpenMP team, which waits at its barriers for threads that other programs keep from
running (measured on two cores shared with others: 8 ms a region instead of 0.8), and not
Numba's parallel loops, whose default threading layer aborts when two streams enter it at once.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import Any

import torch

Help = Callable[[int], None]
# Any of these binds each thread of PyTorch's team to a core, and the main thread with them.
_BINDING = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
TEAM_NUMBERS = 1 << 15  # a thread's least share of an operation, in PyTorch
_PATIENCE_S = 1.0  # for a helper to end, when the program does


class Workers:
    """Threads that help, and the caller.

    Args:
        threads: how many, with the caller.
    """

    def __init__(self, threads: int) -> None:
        """Start nothing: threads start with the first frame that is worth sharing."""
        self.threads = threads
        self._jobs = [SimpleQueue[Help | None]() for _ in range(1, threads)]
        self._lock = threading.Lock()
        self._started = False

    def invite(self, help_with: Help) -> None:
        """Have every helper call ``help_with(worker)`` when it can; return at once.

        Args:
            help_with: returns at once where there is nothing left to do; ``worker`` is in
                ``range(1, threads)``, one a thread.
        """
        if self.threads > 1 and not self._started:
            with self._lock:
                if not self._started:
                    self._start()
        for jobs in self._jobs:
            jobs.put(help_with)

    def _start(self) -> None:
        ready, cores = [threading.Event() for _ in self._jobs], _cores_of_others()
        for worker, jobs in enumerate(self._jobs, 1):
            thread = threading.Thread(target=_serve, args=(jobs, worker, ready[worker - 1], cores),
                                      daemon=True, name=f"deltaconvert-cpu-{worker}")
            thread.start()
            _threads.add(thread)
        for event in ready:
            event.wait()
        _pools.add(self)
        weakref.finalize(self, _dismiss, self._jobs).atexit = False
        self._started = True


def _cores_of_others() -> set[int]:
    """Return where helpers may run if PyTorch's threads are bound to cores; empty to inherit that.

    A thread starts where its maker may run, which is one core then: all helpers would share it
    with the caller.
    """
    if not any(map(os.environ.get, _BINDING)) or not hasattr(os, "sched_getaffinity"):
        return set()
    numbers = torch.zeros(TEAM_NUMBERS * torch.get_num_threads(), device="cpu")
    numbers.neg_()  # the team starts, and is bound
    team: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            team |= os.sched_getaffinity(int(thread))
        except ProcessLookupError:  # it has ended meanwhile
            continue
    return team - os.sched_getaffinity(0)


def _serve(jobs: SimpleQueue[Help | None], worker: int, ready: threading.Event,
           cores: set[int]) -> None:
    set_own_threads(1)
    if cores:
        os.sched_setaffinity(0, cores)
    ready.set()
    while (help_with := jobs.get()) is not None:
        help_with(worker)
        del help_with  # it holds a stream's buffers


def _dismiss(jobs: list[SimpleQueue[Help | None]]) -> None:
    for queue in jobs:
        queue.put(None)


_pools: weakref.WeakSet[Workers] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """See all helpers off before the interpreter ends: it kills a thread that comes to it later,
    and with it the program, where there is code of C++ on that thread's stack."""
    for pool in list(_pools):
        _dismiss(pool._jobs)
    for thread in list(_threads):
        thread.join(_PATIENCE_S)


def set_own_threads(count: int) -> None:
    """Have PyTorch take so many threads for the calls of this thread.

    ``torch.set_num_threads`` also sets what a thread begins with that calls PyTorch for the first
    time just then, and keeps. So the libraries behind it are told, whose numbers are a thread's
    own; where they are not to be found (Windows), nothing is changed.
    """
    torch.get_num_threads()  # a thread's first call to PyTorch sets them
    for tell in _libraries():
        tell(count)


@cache
def _libraries() -> list[Callable[[int], Any]]:
    loaded = ctypes.CDLL(torch._C.__file__)  # a look-up in it goes on in all that it was linked to
    # (MKL's name in small letters is Fortran's, and takes an address.)
    return [getattr(loaded, name) for name in ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
            if hasattr(loaded, name)]
