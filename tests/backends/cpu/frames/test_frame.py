"""The compiled frame: candidates, their sharing, steps in a table, and what Python raises there."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from deltaconvert.backends.cpu.compiling.jit import Entry, entry
from deltaconvert.backends.cpu.compiling.native import Ints, Kept, Longs, call, layout, read, take
from deltaconvert.backends.cpu.frames.candidates import collect
from deltaconvert.backends.cpu.frames.engine import Engine
from deltaconvert.backends.cpu.frames.frame import serve
from deltaconvert.backends.cpu.frames.workers import Workers

PARTS = 1000


class Count(NamedTuple):
    """A step that counts each of its parts in a place of its own."""

    taken: Longs
    done: Longs
    by: Longs


_COUNT = layout(Count)


@entry
def count_parts(address, worker):
    task = read(address, _COUNT)
    while True:
        part = take(task.taken.ctypes.data, 1)
        if part >= task.done.shape[0]:
            return
        task.done[part] += 1
        task.by[worker] += 1


def add_count(engine: Engine, parts: int = PARTS) -> Count:
    task = Count(*(np.zeros(size, np.int64) for size in (1, parts, engine.workers.threads)))
    engine.add(None, count_parts, task)
    return task


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_of_every_step_is_done_once(threads: int) -> None:
    engine = Engine(Workers(threads))
    tasks = [add_count(engine) for _ in range(5)]
    for frame in range(1, 20):
        for task in tasks:
            task.taken[0] = 0
        engine.run(0, 5)
        for task in tasks:
            assert (task.done == frame).all()
            assert task.by.sum() == frame * PARTS


def test_helpers_take_part() -> None:
    engine = Engine(Workers(2))
    task = add_count(engine, 5_000_000)
    deadline = time.monotonic() + 60
    while not task.by.all():  # on a busy machine it may come late, and is not waited for
        task.taken[0] = 0
        engine.run(0, 1)
        assert time.monotonic() < deadline, "the second worker never came"


def test_a_helper_that_comes_first_waits_for_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2)
    engine = Engine(workers)
    task = add_count(engine, 200_000)
    invite = workers.invite

    def invite_and_wait(help_with: Any) -> None:
        invite(help_with)
        time.sleep(0.02)  # the helper looks before there is anything to do

    monkeypatch.setattr(workers, "invite", invite_and_wait)
    engine.run(0, 1)
    deadline = time.monotonic() + 60
    task.by[1] = 0
    while task.by[1] == 0:  # on a busy machine it may have no processor in some of them
        task.taken[0] = 0
        engine.run(0, 1)
        assert time.monotonic() < deadline, "it finds the steps of before over, and leaves"


def test_helpers_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the ones who may be at it when the program ends."""
    by: list[threading.Thread] = []
    others = set(threading.enumerate()) - {threading.current_thread()}  # late ones of other tests

    class Watched(Entry):
        @property
        def address(self) -> int:
            if self._compiled is None and threading.current_thread() not in others:
                by.append(threading.current_thread())
            return super().address

    monkeypatch.setattr("deltaconvert.backends.cpu.frames.engine.serve", Watched(serve.function))
    engine = Engine(Workers(2))
    add_count(engine)
    engine.run(0, 1)
    assert by == [threading.current_thread()]


def test_only_the_steps_asked_for_run() -> None:
    engine = Engine(Workers(1))
    tasks = [add_count(engine) for _ in range(4)]
    engine.run(1, 3)
    assert [int(task.done.sum()) for task in tasks] == [0, PARTS, PARTS, 0]


def test_without_a_share_nobody_is_called() -> None:
    workers = Workers(3)
    engine = Engine(workers)
    add_count(engine)
    engine.run(0, 1, share=False)
    assert not workers._started


def test_the_thread_counts_of_others_stay() -> None:
    before, seen = torch.get_num_threads(), []
    engine = Engine(Workers(3))
    add_count(engine)
    engine.run(0, 1)
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


class Call(NamedTuple):
    """A step that calls Python."""

    function: int


_CALL = layout(Call)


@entry
def call_back(address, worker):
    call(read(address, _CALL).function, worker, 0)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_is_raised_in_a_step_reaches_the_caller(kind: type[BaseException]) -> None:
    engine = Engine(Workers(1))
    before = torch.get_num_threads()

    def fail(worker: int) -> None:
        raise kind(f"worker {worker}")

    engine.add(None, call_back, Call(engine.callback(fail)))
    for _ in range(2):
        with pytest.raises(kind, match="worker 0"):
            engine.run(0, 1)
    assert torch.get_num_threads() == before


def test_python_in_a_step_runs_single_threaded_and_without_gradients() -> None:
    engine, seen = Engine(Workers(2)), []
    engine.add(None, call_back, Call(engine.callback(
        lambda worker: seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled())))))
    engine.run(0, 1)
    assert set(seen) == {(1, True)}


def test_threads_that_begin_while_python_runs_in_a_step_have_all_of_pytorchs_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine, seen = Engine(Workers(2)), []

        def begin(worker: int) -> None:
            other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            other.start()
            other.join()

        engine.add(None, call_back, Call(engine.callback(begin)))
        engine.run(0, 1)
        assert set(seen) == {2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_helper_that_is_late_stays_out_of_a_table_that_has_grown() -> None:
    workers, invited, left = Workers(2), [], []
    workers.invite = invited.append  # nobody comes before the test says so
    engine = Engine(workers)
    add_count(engine)
    engine.run(0, 1)

    def come_late(worker: int) -> None:
        late = threading.Thread(target=invited[0], args=(1,), daemon=True)
        late.start()
        late.join(20)
        left.append(not late.is_alive())

    engine.add(None, call_back, Call(engine.callback(come_late)))
    engine.run(0, 2)
    assert left == [True]


class Two(NamedTuple):
    """Fields of several types."""

    numbers: Ints
    count: int


def test_a_tuple_that_is_not_as_declared_is_refused() -> None:
    Kept(Two(np.zeros(3, np.int32), 3))
    with pytest.raises(TypeError, match="numbers is array\\(int64"):
        Kept(Two(np.zeros(3, np.int64), 3))
    with pytest.raises(TypeError, match="count is float64"):
        Kept(Two(np.zeros(3, np.int32), 3.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes, plane", [(1, 1), (1, 8), (3, 13), (2, 64), (2, 1000)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_lists_the_set_marks_in_order(lanes: int, plane: int, share: float) -> None:
    marks = (np.random.default_rng(0).random(lanes * plane) < share).astype(np.uint8)
    pixels = np.full(lanes * plane, -1, np.int32)
    total = collect(marks, plane, lanes, pixels)
    assert pixels[:total].tolist() == marks.nonzero()[0].tolist()
