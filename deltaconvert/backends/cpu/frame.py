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

from deltaconvert.backends.cpu.jit import entry, loop
from deltaconvert.backends.cpu.marks import SPARE, any_mark, unite_every_other, unite_marks
from deltaconvert.backends.cpu.native import (
    Bytes,
    Flags,
    Ints,
    Ints2,
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
    word_at,
    yield_processor,
)

# Columns of a table of steps: addresses.
HEAD, PREPARE, WORK, TASK = range(4)
_EIGHT_MARKS = np.int64(0x0101010101010101)
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
# Of the rows that a worker takes, so that one that comes late leaves little undone.
_PARTS_OF_A_WORKER = 2
# Numbers of `Parts.progress`. Behind them, in a cache line for each worker, lies its share: the
# next candidate that nobody has taken, and the end.
TAKEN, ROWS, WORKERS, GROUPS, DONE = range(5)
_LINE = 8
_NEXT, _END = 0, 1


class Input(NamedTuple):
    """An input edge, and which of its pixels an output pixel reads.

    Args:
        mask: uint8, flat.
        tally: see `Edge.tally`.
        rows, cols: int32 ``[H_out, taps_y]`` and ``[W_out, taps_x]``, or -1.
        height, width: of the input.
        windows: int64 ``[taps_x, 3]``: the first output column whose tap exists, the one behind
            the last, and the tap's column at the first; used where columns ``stride`` apart are
            read, as windows do.
        stride: of the windows; 0 where the columns are something else.
    """

    mask: Bytes
    tally: Longs
    rows: Ints2
    cols: Ints2
    height: int
    width: int
    windows: Longs2
    stride: int


class Parts(NamedTuple):
    """The candidates of a step, and how far they are taken.

    Args:
        pixels: int32, flat indices ``(lane * height + y) * width + x``, ascending.
        listed: int64 ``[1 + inputs]``: how many, and the versions of the inputs' masks that
            they were derived from; shared, as ``pixels``, by all readers of equal footprints.
        progress: see `progress_of`: the rows of a part, the workers, their shares, and what other
            ways to share take.
    """

    pixels: Ints
    listed: Longs
    progress: Longs


def progress_of(threads: int) -> np.ndarray:
    """Return `Parts.progress` for so many workers."""
    return np.zeros(_LINE * (threads + 1), np.int64)


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


_INPUT, _HEAD, _SESSION = layout(Input), layout(Head), layout(Session)


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
    parts = workers * _PARTS_OF_A_WORKER if workers > 1 else 1
    rows = (found + parts - 1) // parts
    rows = (rows + head.grain - 1) // head.grain * head.grain
    head.parts.progress[TAKEN] = 0
    divide(head.parts, 0, found, min(rows, head.most), workers)
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


@loop
def divide(parts, first, last, rows, workers):
    """Give each worker a share of the candidates, and settle the rows of a part."""
    progress = parts.progress
    progress[ROWS], progress[WORKERS] = rows, workers
    pieces = (last - first + rows - 1) // rows
    for worker in range(workers):
        line = _LINE * (worker + 1)
        progress[line + _NEXT] = min(first + pieces * worker // workers * rows, last)
        progress[line + _END] = min(first + pieces * (worker + 1) // workers * rows, last)


@loop
def take_pixels(parts, worker):
    """Return the next candidates that nobody has taken; none at the end.

    A worker begins with its own share, about the same part of the picture in every step, which it
    finds in its own cache, and then takes from the others'.
    """
    progress = parts.progress
    rows, workers = progress[ROWS], progress[WORKERS]
    for k in range(workers):
        whose = worker + k if worker + k < workers else worker + k - workers
        line = _LINE * (whose + 1)
        end = progress[line + _END]
        if progress[line + _NEXT] < end:
            start = take(progress.ctypes.data + 8 * (line + _NEXT), rows)
            if start < end:
                return parts.pixels[start:min(start + rows, end)]
    return parts.pixels[:0]


@loop
def find(head):
    """List the candidates, unless a reader of the same masks has; return how many there are."""
    lanes = head.counts.shape[1]
    listed = head.parts.listed
    changed = False
    for lane in range(lanes):
        changed = changed or head.fresh[lane]
    known = True
    for k in range(head.inputs.shape[0]):
        tally = read(head.inputs[k], _INPUT).tally
        for lane in range(lanes):
            changed = changed or tally[lane] != 0
        known = known and listed[1 + k] == tally[lanes]
        listed[1 + k] = tally[lanes]
    if not changed:
        listed[0] = 0
    elif not known:
        listed[0] = _list(head)
    return listed[0]


@loop
def _list(head):
    lanes = head.counts.shape[1]
    fresh = False
    for lane in range(lanes):
        fresh = fresh or head.fresh[lane]
    if head.own and head.inputs.shape[0] == 1 and not fresh:
        return collect(read(head.inputs[0], _INPUT).mask, head.plane, lanes, head.parts.pixels)
    marks = head.marks
    marks[:] = 0
    for k in range(head.inputs.shape[0]):
        source = read(head.inputs[k], _INPUT)
        changed = False
        for lane in range(lanes):
            changed = changed or source.tally[lane] != 0
        if changed and head.own:
            for at in range(marks.shape[0]):
                marks[at] |= source.mask[at]
        elif changed:
            mark(source, lanes, marks, head.inputs.shape[0] == 1)
    for lane in range(lanes):
        if head.fresh[lane]:
            marks[lane * head.plane:(lane + 1) * head.plane] = 1
    return collect(marks, head.plane, lanes, head.parts.pixels)


@loop
def mark(source, lanes, marks, alone):
    """Set the marks of the output pixels one of whose taps is set in the mask.

    Args:
        source: an `Input`.
        lanes: how many.
        marks: uint8, flat.
        alone: nobody else sets any, so that lines of the same taps have the same.
    """
    rows, cols, width = source.rows, source.cols, source.width
    height_out, width_out = rows.shape[0], cols.shape[0]
    united = np.zeros(width + SPARE, np.uint8)
    line = united.ctypes.data
    for lane in range(lanes):
        mask = source.mask.ctypes.data + lane * source.height * width
        for y in range(height_out):
            start = (lane * height_out + y) * width_out
            out = marks.ctypes.data + start
            if alone and y > 0 and same_taps(rows[y], rows[y - 1]):
                unite_marks(out, out - width_out, width_out)
                continue
            united[:] = 0
            for tap in range(rows.shape[1]):
                if rows[y, tap] >= 0:
                    unite_marks(line, mask + rows[y, tap] * width, width)
            if not any_mark(line, width):
                continue
            if source.stride == 0:
                mark_columns(marks[start:start + width_out], united, cols)
                continue
            for tap in range(cols.shape[1]):
                first, end, column = source.windows[tap]
                if source.stride == 1:
                    unite_marks(out + first, line + column, end - first)
                elif source.stride == 2:
                    unite_every_other(out + first, line + column, end - first)
                else:
                    for x in range(first, end):
                        marks[start + x] |= united[column + (x - first) * source.stride]


@loop
def mark_columns(marks, line, cols):
    """Set the marks of a row one of whose taps is set, whatever the columns."""
    for tap in range(cols.shape[1]):
        for x in range(cols.shape[0]):
            column = cols[x, tap]
            if column >= 0:
                marks[x] |= line[column]


@loop
def same_taps(taps, others):
    """Return whether two rows read the same."""
    same = True
    for tap in range(taps.shape[0]):
        same = same and taps[tap] == others[tap]
    return same


@loop
def collect(marks, plane, lanes, pixels):
    """List the set marks; return how many there are."""
    total = 0
    for lane in range(lanes):
        start = lane * plane
        lane_marks = marks[start:start + plane]
        for word in range(plane // 8):
            # most of a quiet scene is skipped eight at a time, and of a busy one taken so
            marked = word_at(lane_marks.ctypes.data + 8 * word)
            if marked == _EIGHT_MARKS:
                for k in range(8):
                    pixels[total + k] = start + word * 8 + k
                total += 8
            elif marked != 0:
                for at in range(word * 8, word * 8 + 8):
                    pixels[total] = start + at
                    total += lane_marks[at] != 0
        for at in range(plane // 8 * 8, plane):
            if lane_marks[at] != 0:
                pixels[total] = start + at
                total += 1
    return total
