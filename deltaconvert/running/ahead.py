"""Reading ahead: a source is iterated in a thread of its own while the model computes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")

DEPTH = 4  # frames; a decoder's hiccup is shorter, and a frame of video is large
PATIENCE_S = 0.1  # how soon a thread notices that nobody wants its items


class _End:
    """What comes behind the last item: nothing, or the error that the source ended with."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[Item], depth: int = DEPTH) -> Generator[Item, None, None]:
    """Yield the items of an iterable that is read in another thread, up to ``depth`` ahead.

    An error of the source is raised here, behind the items that came before it. The thread
    ends when the generator is closed, or the source has ended.
    """
    ready: Queue[Any] = Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stop), daemon=True,
                              name="deltaconvert-reads-ahead")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        _drain(ready)
        thread.join()


def _produce(items: Iterable[Any], ready: Queue[Any], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, ready, stop):
                return
        end = _End()
    except BaseException as error:
        end = _End(error)
    _put(end, ready, stop)


def _put(item: Any, ready: Queue[Any], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=PATIENCE_S)
            return True
        except Full:
            continue
    return False


def _drain(ready: Queue[Any]) -> None:
    try:
        while True:
            ready.get_nowait()
    except Empty:
        pass
