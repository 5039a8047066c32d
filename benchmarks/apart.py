"""A function in a process of its own, call after call: what one call breaks, the next lacks not."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any


class Failed(Exception):
    """A call did not return; the text says why."""


class Apart:
    """Runs a function in a process that is started anew after a call that failed.

    A kernel that reads where nothing is leaves its process without a GPU, and one that never ends
    leaves it without an end.
    """

    def __init__(self, function: Callable[..., Any], seconds: float) -> None:
        """Start nothing yet.

        Args:
            function: of a module, so that another process finds it.
            seconds: that a call may take.
        """
        self.function, self.seconds = function, seconds
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, *args: Any) -> Any:
        """Return what the function returns.

        Raises:
            Failed: it raised, its process died, or it took too long.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send(args)
            if not self._pipe.poll(self.seconds):
                raise Failed(f"not done in {self.seconds:.0f} s")
            result, error = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise Failed(f"its process died ({type(error).__name__})") from None
        except Failed:
            self.close()
            raise
        if error:
            self.close()
            raise Failed(error)
        return result

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.function, theirs), daemon=True)
        self._process.start()
        theirs.close()


def _serve(function: Callable[..., Any], pipe: Any) -> None:
    while True:
        try:
            args = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(*args), ""
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            answer = None, f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        pipe.send(answer)
