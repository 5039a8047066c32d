"""The compiled frame: step after step of a table, shared with whoever helps, without Python.

A step begins by finding its candidates, computes them in parts that its workers take, and
ends by publishing what it changed. A step that is worth sharing opens the gate; helpers, who
watch it while a frame runs, come in, and the caller closes it when no part is left. A helper
that never came is not waited for: a stream is never stuck behind other programs on the cores.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import entry, loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Flags,
    Longs,
    Longs2,
    call,
    exchange,
    layout,
    load,
    pause,
    read,
    replace,
    take,
    yield_processor,
)
from deltaconvert.backends.cpu.frames.candidates import find
from deltaconvert.backends.cpu.frames.parts import TAKEN, Parts, divide

# Columns of a table of steps: addresses.
HEAD, PREPARE, WORK, TASK = range(4)
# Of a gate: numbers in cache lines of their own. The word holds a ticket that is new for each
# step, whether it is open, and how many helpers are inside.
WORD, STEP, OVER, TICKET = 0, 8, 16, 24
GATE = 32
_TICKET, _OPEN = np.int64(1 << 32), np.int64(1 << 16)
# A helper that has seen nothing to do for so long, some 50 us, lets others have the processor.
_PATIENCE = 1000
# Of a ledger.
FOUND, WRITTEN, FRAMES, ALL_FOUND, ALL_WRITTEN = range(5)
LEDGER = 5


class Head(NamedTuple):
    """What the frame needs to begin and end a step.

    Args:
        inputs: addresses of `Input`.
        own: each output pixel reads the inputs' pixels at its own place.
        plane: output pixels of a lane.
        fresh: one a lane.
        parts: of the step.
        marks: uint8, working memory: one an output pixel.
        mask, tally: of the output edge.
        counts: int64 ``[workers, lanes]``: pixels that were written.
        shared_from: candidates from which helpers are called.
        grain, most: rows of a part are a multiple of ``grain``, and not more than ``most``.
        ledger: int64 ``[LEDGER]``.
    """

    inputs: Longs
    own: bool
    plane: int
    fresh: Flags
    parts: Parts
    marks: Bytes
    mask: Bytes
    tally: Longs
    counts: Longs2
    shared_from: int
    grain: int
    most: int
    ledger: Longs


class Session(NamedTuple):
    """What a frame runs on.

    Args:
        table: int64 ``[steps, 4]``.
        gate: int64 ``[GATE]``.
        threads: the workers, the caller among them.
        refused: int64 ``[1]``: not 0 when a door has refused the frame: no step follows.
    """

    table: Longs2
    gate: Longs
    threads: int
    refused: Longs


_HEAD, _SESSION = layout(Head), layout(Session)


@entry
def run_steps(address, steps):
    """Run the steps from ``steps >> 32`` up to the lower half of ``steps``, exclusive."""
    session = read(address, _SESSION)
    session.refused[0] = 0
    for step in range(steps >> 32, steps & 0xffffffff):
        if session.refused[0] == 0:
            _run_step(session, step)
    exchange(session.gate.ctypes.data + 8 * OVER, 1)


@entry
def serve(address, worker):
    """Help with every step that is opened, until the steps are over."""
    session = read(address, _SESSION)
    table, gate = session.table, session.gate
    word = gate.ctypes.data + 8 * WORD
    done, idle = np.int64(-1), 0
    while load(gate.ctypes.data + 8 * OVER) == 0:
        seen = load(word)
        if seen & _OPEN and seen // _TICKET != done:
            if replace(word, seen, seen + 1):
                step = gate[STEP]
                call(table[step, WORK], table[step, TASK], worker)
                take(word, -1)
                done, idle = seen // _TICKET, 0
        else:
            idle += 1
            _wait(idle)


@loop
def _run_step(session, step):
    table = session.table
    workers = session.threads
    if table[step, HEAD] != 0:
        head = read(table[step, HEAD], _HEAD)
        workers = begin(head, session.threads)
    if workers > 0:
        if table[step, PREPARE] != 0:
            call(table[step, PREPARE], table[step, TASK], workers)
        if session.refused[0] != 0:
            return
        if workers > 1:
            _share(session, step)
        else:
            call(table[step, WORK], table[step, TASK], 0)
    if table[step, HEAD] != 0:
        end(read(table[step, HEAD], _HEAD))


@loop
def _share(session, step):
    gate = session.gate
    word = gate.ctypes.data + 8 * WORD
    gate[TICKET] += 1
    gate[STEP] = step
    exchange(word, gate[TICKET] * _TICKET + _OPEN)
    call(session.table[step, WORK], session.table[step, TASK], 0)
    take(word, -_OPEN)
    idle = 0
    while load(word) % _OPEN != 0:
        idle += 1
        _wait(idle)


@loop
def _wait(idle):
    if idle < _PATIENCE:
        pause()
    else:
        yield_processor()


@loop
def begin(head, threads):
    """Find the candidates, clear the mask; return how many workers are called, 0 for no work."""
    found = find(head)
    head.ledger[FOUND] = found
    written = np.int64(0)
    for lane in range(head.counts.shape[1]):
        written += head.tally[lane]
        for worker in range(head.counts.shape[0]):
            head.counts[worker, lane] = 0
    if written != 0:
        head.mask[:] = 0
    if found == 0:
        return 0
    workers = threads if found >= head.shared_from else 1
    head.parts.progress[TAKEN] = 0
    divide(head.parts, 0, found, head.grain, head.most, workers)
    return workers


@loop
def end(head):
    """Publish how many pixels were written."""
    lanes = head.counts.shape[1]
    written = np.int64(0)
    for lane in range(lanes):
        count = np.int64(0)
        for worker in range(head.counts.shape[0]):
            count += head.counts[worker, lane]
        head.tally[lane] = count
        written += count
    head.tally[lanes] += 1
    count_work(head.ledger, head.ledger[FOUND], written)


@loop
def count_work(ledger, found, written):
    """Enter a frame's work into a ledger."""
    ledger[FOUND], ledger[WRITTEN] = found, written
    ledger[FRAMES] += 1
    ledger[ALL_FOUND] += found
    ledger[ALL_WRITTEN] += written
