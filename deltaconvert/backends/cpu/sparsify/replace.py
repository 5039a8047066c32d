"""The loops of the door in: the pixels that differ, written into the value."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.native import word_at
from deltaconvert.backends.cpu.maps.gather import copy
from deltaconvert.backends.cpu.maps.storage import load, store


@loop
def replace_line(frame, start, channel_step, pixel_step, value, value_start, value_step, channels,
                 marks):
    """Write the frame's numbers at the marked pixels of a line; see `compare_line`."""
    width, done = marks.shape[0], 0
    planes = channels == 3 and value_step == 3 and pixel_step == 1
    second, third = start + channel_step, start + 2 * channel_step
    if value_step == channels and all_set(marks):
        if channel_step == 1 and pixel_step == channels:
            copy(value[value_start:value_start + width * channels],
                 frame[start:start + width * channels])
            return
        if planes:
            join_planes(frame[start:start + width], frame[second:second + width],
                        frame[third:third + width], value[value_start:value_start + 3 * width])
            return
    if planes:
        done = width // 8 * 8
        replace_planes(frame[start:start + done], frame[second:second + done],
                       frame[third:third + done], value[value_start:value_start + 3 * done], marks)
    for first in range(done, width, 8):
        if first + 8 <= width and word_at(marks.ctypes.data + first) == 0:
            continue  # most of a quiet scene is skipped eight at a time
        for x in range(first, min(first + 8, width)):
            new, old = start + x * pixel_step, value_start + x * value_step
            for c in range(channels):  # no branch: which pixels changed cannot be guessed
                kept, replaced = load(value, old + c), load(frame, new + c * channel_step)
                if marks[x] != 0:
                    kept = replaced
                store(value, old + c, kept)


@loop
def all_set(marks):
    """Return whether every mark is set."""
    missing = np.uint8(0)
    for i in range(marks.shape[0]):
        missing |= np.uint8(marks[i] == 0)
    return missing == 0


@loop
def join_planes(red, green, blue, value):
    """Write three planes of a line as one interleaved one; a loop that becomes vectors."""
    for x in range(red.shape[0]):
        store(value, 3 * x, load(red, x))
        store(value, 3 * x + 1, load(green, x))
        store(value, 3 * x + 2, load(blue, x))


@loop
def replace_planes(red, green, blue, value, marks):
    """Write the marked pixels of lines of three planes, eight at a time."""
    for first in range(0, red.shape[0], 8):
        if word_at(marks.ctypes.data + first) != 0:
            replace_eight(red[first:], green[first:], blue[first:], value[3 * first:],
                          marks[first:])


@loop
def replace_eight(red, green, blue, value, marks):
    """Do the same for so many pixels that this becomes vectors."""
    for x in range(8):
        r, g, b = load(value, 3 * x), load(value, 3 * x + 1), load(value, 3 * x + 2)
        if marks[x] != 0:
            r, g, b = load(red, x), load(green, x), load(blue, x)
        store(value, 3 * x, r)
        store(value, 3 * x + 1, g)
        store(value, 3 * x + 2, b)
