"""The candidates of a step, found from the masks of its inputs: the compiled loops."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import (
    Bytes,
    Ints2,
    Longs,
    Longs2,
    layout,
    read,
    word_at,
)
from deltaconvert.backends.cpu.frames.marks import SPARE, any_mark, unite_every_other, unite_marks

_EIGHT_MARKS = np.int64(0x0101010101010101)


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


_INPUT = layout(Input)


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
