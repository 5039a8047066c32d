"""Reading ahead in a thread: order, errors, and threads that end."""

import threading
import time
from contextlib import closing

import pytest

from deltaconvert.running.ahead import ahead


def readers() -> int:
    return sum(t.name == "deltaconvert-reads-ahead" for t in threading.enumerate())


def test_items_come_in_order_and_the_thread_ends():
    assert list(ahead(range(100), depth=3)) == list(range(100))
    assert readers() == 0


def test_it_reads_ahead_but_no_further_than_asked():
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    with closing(ahead(source(), depth=3)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 60
        while len(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert taken == [0, 1, 2, 3, 4]  # one handed over, three waiting, one in hand
    assert readers() == 0


def test_an_error_comes_behind_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise ValueError("broken")

    items = ahead(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert readers() == 0


def test_reading_happens_in_another_thread():
    (name,) = ahead(threading.current_thread().name for _ in range(1))
    assert name == "deltaconvert-reads-ahead"
