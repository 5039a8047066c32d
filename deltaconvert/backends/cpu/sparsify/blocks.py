"""The loops of the door in: which pixels differ, in blocks whose mean does; see `Config`."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.maps.storage import load
from deltaconvert.backends.cpu.sparsify.pixels import compare_line, not_finite

BLOCK = 8
_ZERO = np.float32(0)
_LARGEST = np.finfo(np.float32).max
_SURELY, _TINY = np.float32(1 - 2.0**-20), np.float32(2.0**-100)


@loop
def compare_blocks(frame, strides, shape, value, value_step, threshold, cap, rms, first, last,
                   marks):
    """Mark the pixels that differ in blocks whose mean differs by more than the threshold.

    As `compare_pixels`, but for ``cap``, the norm that no pixel of a block that is held may
    exceed, and ``first`` and ``last``, which count rows of blocks over all lanes.
    """
    channels, height, width = shape[1], shape[2], shape[3]
    block_rows = (height + BLOCK - 1) // BLOCK
    alike = strides[1] == 1 and strides[3] == channels and value_step == channels
    planes = channels == 3 and value_step == 3 and strides[3] == 1
    finite = True
    keep, most = np.empty(width, np.uint8), np.empty(width, np.float32)
    line_over = np.empty(width, np.uint8)
    over = np.empty(width * channels if alike else width, np.uint8)
    sums = np.empty((channels, width), np.float32)
    for block_row in range(first, last):
        lane, top = block_row // block_rows, block_row % block_rows * BLOCK
        lines, start = min(BLOCK, height - top), lane * strides[0] + top * strides[2]
        pixel = (lane * height + top) * width
        out = marks[pixel:pixel + lines * width]
        if planes:
            ok = planes_of_blocks(frame, start, strides, value, pixel, lines, threshold, cap, rms,
                                  sums, most, keep, out)
        else:
            ok = lines_of_blocks(frame, start, strides, value, value_step, pixel, lines, threshold,
                                 cap, rms, alike, sums, over, line_over, keep, out)
        finite = finite and ok
    return finite


@loop
def planes_of_blocks(frame, start, strides, value, pixel, lines, threshold, cap, rms, sums, most,
                     keep, marks):
    """Mark the pixels of a row of blocks of three planes; return whether all is finite.

    A number that is not finite is one in the sum of its column, so only where a sum is not are
    the numbers looked at.
    """
    width, plane, finite = keep.shape[0], strides[1], True
    sums[:] = _ZERO
    most[:] = _ZERO
    for i in range(lines):
        new, old = frame[start + i * strides[2]:], value[3 * (pixel + i * width):]
        add_three(new, new[plane:], new[2 * plane:], old, rms, sums, most,
                  marks[i * width:(i + 1) * width])
    if not all_finite(sums.reshape(-1)):
        for i in range(lines):
            for c in range(3):
                line = start + i * strides[2] + c * plane
                finite = finite and all_finite(frame[line:line + width])
    any_kept = find_changed(sums.reshape(-1), width, 1, 3, lines, threshold, rms, keep)
    limit = cap
    if rms:  # rounding moves a sum of squares by less than it is lowered here, but for tiny ones
        limit = min(np.float32(3) * cap * cap * _SURELY, _LARGEST)
        limit = limit if limit > _TINY else _ZERO
    for left in range(0, width, BLOCK):
        right, largest = min(left + BLOCK, width), _ZERO
        for x in range(left, right):
            largest = max(largest, most[x])
        if largest > limit and keep[left] == 0 and pixel_exceeds(
                frame, start, strides, value, pixel, width, 3, lines, left, right, rms, cap):
            keep[left:right] = 255
            any_kept = True
    for i in range(lines):
        keep_marks(marks[i * width:(i + 1) * width], keep, any_kept)
    return finite


@loop
def lines_of_blocks(frame, start, strides, value, value_step, pixel, lines, threshold, cap, rms,
                    alike, sums, over, line_over, keep, marks):
    """Do the same for a frame of any layout."""
    channels, width, finite = sums.shape[0], keep.shape[0], True
    numbers = channels if alike else 1  # of a pixel, that are marked one by one
    across, along = (1, channels) if alike else (width, 1)  # to the next channel, and pixel
    sums[:] = _ZERO
    over[:] = 0
    for i in range(lines):
        new, old = frame[start + i * strides[2]:], value[(pixel + i * width) * value_step:]
        if alike:
            ok = add_flat(new, old, cap, over, sums.reshape(-1))
        else:
            ok = compare_line(new, 0, strides[1], strides[3], old, 0, value_step, channels, _ZERO,
                              cap, rms, marks[i * width:(i + 1) * width], line_over, sums, width)
            over |= line_over
        finite = finite and ok
    any_kept = find_changed(sums.reshape(-1), across, along, channels, lines, threshold, rms, keep)
    if any_set(over):
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            if keep[left] == 0 and any_set(over[left * numbers:right * numbers]) and (
                    not alike or not rms or pixel_exceeds(
                        frame, start, strides, value, pixel, width, channels, lines, left, right,
                        rms, cap)):
                keep[left:right] = 255
                any_kept = True
    for i in range(lines):
        out = marks[i * width:(i + 1) * width]
        if alike and any_kept:
            mark_flat(frame[start + i * strides[2]:], value[(pixel + i * width) * channels:],
                      channels, out)
        keep_marks(out, keep, any_kept)
    return finite


@loop
def add_three(red, green, blue, old, rms, sums, most, marks):
    """Compare one line of three planes for the test of blocks, with a threshold of 0.

    Args:
        red, green, blue, old, rms: as for `compare_three`.
        sums: float32 ``[3, W]``, the differences are added.
        most: float32 ``[W]``, the largest so far: the sum of squares of a pixel's differences, or
            the magnitude of one.
        marks: uint8 ``[W]``, written.
    """
    first, second, third = sums[0], sums[1], sums[2]
    for x in range(most.shape[0]):
        u, v, w = (load(red, x) - load(old, 3 * x), load(green, x) - load(old, 3 * x + 1),
                   load(blue, x) - load(old, 3 * x + 2))
        first[x] += u
        second[x] += v
        third[x] += w
        marks[x] = np.uint8(u != _ZERO) | np.uint8(v != _ZERO) | np.uint8(w != _ZERO)
        size = u * u + v * v + w * w if rms else max(abs(u), abs(v), abs(w))
        most[x] = size if size > most[x] else most[x]


@loop
def add_flat(new, old, cap, over, sums):
    """Compare a line with one that lies alike, number by number, for the test of blocks."""
    bad = np.uint8(0)
    for i in range(sums.shape[0]):
        number = load(new, i)
        difference = number - load(old, i)
        bad |= not_finite(number)
        over[i] |= np.uint8(not (abs(difference) <= cap))
        sums[i] += difference
    return bad == 0


@loop
def all_finite(numbers):
    """Return whether none is infinite or NaN."""
    bad = np.uint8(0)
    for i in range(numbers.shape[0]):
        bad |= not_finite(load(numbers, i))
    return bad == 0


@loop
def mark_flat(new, old, channels, marks):
    """Mark the pixels of a line that differ at all."""
    for x in range(marks.shape[0]):
        changed = np.uint8(0)
        for at in range(x * channels, (x + 1) * channels):
            changed |= np.uint8(load(new, at) != load(old, at))
        marks[x] = changed


@loop
def keep_marks(marks, keep, any_kept):
    """Clear the marks of a line where its blocks are not kept."""
    for x in range(marks.shape[0]):
        marks[x] = marks[x] & keep[x] if any_kept else np.uint8(0)


@loop
def any_set(marks):
    """Return whether any mark is set."""
    found = np.uint8(0)
    for i in range(marks.shape[0]):
        found |= marks[i]
    return found != 0


@loop
def find_changed(sums, across, along, channels, lines, threshold, rms, keep):
    """Set ``keep`` to 255 in blocks whose mean exceeds the threshold, else to 0; whether any does.

    Args:
        sums: of each pixel's column; ``across`` from a channel to the next, ``along`` from pixel
            to pixel.
        channels, lines: of the blocks.
        threshold, rms: the test.
        keep: uint8 ``[W]``.
    """
    width, any_kept = keep.shape[0], False
    one = np.uintp(along)  # an index that has no sign is not looked at for one
    for left in range(0, width, BLOCK):
        right, size = min(left + BLOCK, width), _ZERO
        share = np.float32(1) / np.float32(lines * (right - left))
        for c in range(channels):
            at = np.uintp(c * across + left * along)
            if right - left == BLOCK:  # written out: so short a loop is no vector's
                mean = (((sums[at] + sums[at + one])
                         + (sums[at + np.uintp(2) * one] + sums[at + np.uintp(3) * one]))
                        + ((sums[at + np.uintp(4) * one] + sums[at + np.uintp(5) * one])
                           + (sums[at + np.uintp(6) * one] + sums[at + np.uintp(7) * one])))
            else:
                mean = _ZERO
                for x in range(right - left):
                    mean += sums[at + np.uintp(x) * one]
            mean *= share
            size = size + mean * mean if rms else max(size, abs(mean))
        size = np.sqrt(size / np.float32(channels)) if rms else size
        changed = not (size <= threshold)
        any_kept = any_kept or changed
        for x in range(left, right):
            keep[x] = np.uint8(255) if changed else np.uint8(0)
    return any_kept


@loop
def pixel_exceeds(frame, start, strides, value, pixel, width, channels, lines, left, right, rms,
                  cap):
    """Return whether a pixel of a block differs by more than the cap; a value without gaps."""
    for i in range(lines):
        for x in range(left, right):
            size, old = _ZERO, (pixel + i * width + x) * channels
            new = start + i * strides[2] + x * strides[3]
            for c in range(channels):
                difference = load(frame, new + c * strides[1]) - load(value, old + c)
                size = size + difference * difference if rms else max(size, abs(difference))
            size = np.sqrt(size / np.float32(channels)) if rms else size
            if not (size <= cap):
                return True
    return False
