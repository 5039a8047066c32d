"""A small pool of threads that share the parts of one step.

The caller works too, helpers join when they wake, and a job does not wait for a helper that
never came: a stream is never stuck behind another, nor behind other programs on the same
cores. That is what an OpenMP team would do at its barriers (measured on two cores shared with
others: 8 ms a region instead of 0.8). And it is not Numba's parallel loops, whose default
threading layer aborts when two streams enter it at once.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import torch

Task = Callable[[int, int], None]


class _Job:
    """The parts of one step, handed out one by one to whoever joins."""

    def __init__(self, task: Task, parts: int) -> None:
        self.task, self.parts = task, parts
        self.next_part = itertools.count()  # next() on it is atomic
        self.next_worker = itertools.count()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Compute parts until none is left; keep what is raised for the caller."""
        try:
            worker = next(self.next_worker)
            with torch.inference_mode():
                for part in self.next_part:
                    if part >= self.parts or self.error is not None:
                        return
                    self.task(worker, part)
        except BaseException as error:
            self.error = error


class Workers:
    """Threads that share a step, the caller among them.

    Args:
        threads: how many, with the caller.
    """

    def __init__(self, threads: int) -> None:
        """Start nothing: threads start with the first job that is worth sharing."""
        self.threads = threads
        self._jobs: SimpleQueue[_Visit | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = False

    def run(self, task: Task, parts: int, share: bool = True) -> None:
        """Call ``task(worker, part)`` for every part, each worker one at a time.

        PyTorch runs single-threaded inside a task; its thread count belongs to the thread,
        and the caller's is as before afterwards.

        Args:
            task: does one part; ``worker`` is in ``range(threads)``.
            parts: how many there are.
            share: whether there is enough work for several.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        job = _Job(task, parts)
        try:
            if share and parts > 1 and self.threads > 1:
                self._share(job)
            else:
                job.work()
        finally:
            torch.set_num_threads(before)
        if job.error is not None:
            raise job.error

    def _share(self, job: _Job) -> None:
        with self._lock:
            if not self._started:
                self._start()
        visit = _Visit(job)
        for _ in range(min(self.threads, job.parts) - 1):
            self._jobs.put(visit)
        try:
            job.work()
        finally:
            visit.close()

    def _start(self) -> None:
        for index in range(1, self.threads):
            threading.Thread(target=_serve, args=(self._jobs,), daemon=True,
                             name=f"deltaconvert-cpu-{index}").start()
        weakref.finalize(self, _dismiss, self._jobs, self.threads - 1)
        self._started = True


class _Visit:
    """Who is at a job, so that its owner leaves last."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.lock, self.done = threading.Lock(), threading.Lock()
        self.done.acquire()
        self.inside, self.closed = 0, False

    def help(self) -> None:
        """Join the job, unless it is over."""
        with self.lock:
            if self.closed:
                return
            self.inside += 1
        self.job.work()
        with self.lock:
            self.inside -= 1
            last = self.closed and self.inside == 0
        if last:
            self.done.release()

    def close(self) -> None:
        """Let nobody in any more; wait until the helpers are out."""
        with self.lock:
            self.closed = True
            wait = self.inside > 0
        if wait:
            self.done.acquire()


def _serve(jobs: SimpleQueue[_Visit | None]) -> None:
    torch.set_num_threads(1)  # of this thread; `Workers.run` restores the default for new ones
    while (visit := jobs.get()) is not None:
        visit.help()
        del visit  # it holds a stream's buffers


def _dismiss(jobs: SimpleQueue[_Visit | None], helpers: int) -> None:
    for _ in range(helpers):
        jobs.put(None)
