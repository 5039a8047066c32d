"""The loops of the door in: a frame compared with the value, read once.

The frame is ``[N, C, H, W]`` with any strides. Three channels, in planes (PyTorch's own
order) or interleaved (a decoder's), have loops whose steps are constants, so that they
run on whole vectors.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.jit import loop
from deltaconvert.backends.cpu.storage import load, store

BLOCK = 8
_ZERO = np.float32(0)
_LARGEST = np.finfo(np.float32).max


@loop
def compare_line(frame, start, channel_step, pixel_step, value, value_start, value_step, channels,
                 threshold, cap, rms, marks, over, sums, width):
    """Compare one line of pixels; return whether all of its numbers are finite.

    Args:
        frame, start, channel_step, pixel_step: flat, and where this line's numbers are.
        value, value_start, value_step: the same for the value, channels-last.
        channels, width: of the line.
        threshold: norm of the difference from which ``marks`` is set.
        cap: the same for ``over``.
        rms: which norm.
        marks, over: uint8 ``[W]``, written.
        sums: float32 ``[C, W]``, the differences are added.
    """
    bad = np.uint8(0)
    for x in range(width):
        size = _ZERO
        for c in range(channels):
            v = load(frame, start + c * channel_step + x * pixel_step)
            d = v - load(value, value_start + x * value_step + c)
            bad |= np.uint8(not (abs(v) <= _LARGEST))
            sums[c, x] += d
            size = size + d * d if rms else max(size, abs(d))
        size = np.sqrt(size / np.float32(channels)) if rms else size
        marks[x] = np.uint8(not (size <= threshold))
        over[x] = np.uint8(not (size <= cap))
    return bad == 0


@loop
def compare_three(red, green, blue, old, threshold, rms, marks):
    """Compare one line of three planes with an interleaved one, for the pixel test."""
    bad = np.uint8(0)
    width = marks.shape[0]
    third = np.float32(3)
    for x in range(width):
        r, g, b = load(red, x), load(green, x), load(blue, x)
        u, v = abs(r - load(old, 3 * x)), abs(g - load(old, 3 * x + 1))
        w = abs(b - load(old, 3 * x + 2))
        bad |= np.uint8(not (abs(r) <= _LARGEST)) | np.uint8(not (abs(g) <= _LARGEST)) | np.uint8(
            not (abs(b) <= _LARGEST))
        if rms:
            marks[x] = np.uint8(not (np.sqrt((u * u + v * v + w * w) / third) <= threshold))
        else:
            marks[x] = np.uint8(not (u <= threshold)) | np.uint8(not (v <= threshold)) | np.uint8(
                not (w <= threshold))
    return bad == 0


@loop
def compare_interleaved(new, old, threshold, rms, marks):
    """Compare one interleaved line of three channels with another, for the pixel test."""
    bad = np.uint8(0)
    width = marks.shape[0]
    third = np.float32(3)
    for x in range(width):
        r, g, b = load(new, 3 * x), load(new, 3 * x + 1), load(new, 3 * x + 2)
        u, v = abs(r - load(old, 3 * x)), abs(g - load(old, 3 * x + 1))
        w = abs(b - load(old, 3 * x + 2))
        bad |= np.uint8(not (abs(r) <= _LARGEST)) | np.uint8(not (abs(g) <= _LARGEST)) | np.uint8(
            not (abs(b) <= _LARGEST))
        if rms:
            marks[x] = np.uint8(not (np.sqrt((u * u + v * v + w * w) / third) <= threshold))
        else:
            marks[x] = np.uint8(not (u <= threshold)) | np.uint8(not (v <= threshold)) | np.uint8(
                not (w <= threshold))
    return bad == 0


@loop
def add_three(red, green, blue, step, old, cap, rms, marks, over, sums):
    """Compare one line of three planes, or of pixels ``step`` apart, for the test of blocks.

    As `compare_line`, with a threshold of 0; ``sums`` is float32 ``[3, W]``.
    """
    bad = np.uint8(0)
    first, second, third, three = sums[0], sums[1], sums[2], np.float32(3)
    for x in range(marks.shape[0]):
        r, g, b = load(red, step * x), load(green, step * x), load(blue, step * x)
        u, v, w = r - load(old, 3 * x), g - load(old, 3 * x + 1), b - load(old, 3 * x + 2)
        bad |= np.uint8(not (abs(r) <= _LARGEST)) | np.uint8(not (abs(g) <= _LARGEST)) | np.uint8(
            not (abs(b) <= _LARGEST))
        first[x] += u
        second[x] += v
        third[x] += w
        if rms:
            size = np.sqrt((u * u + v * v + w * w) / three)
        else:
            size = max(abs(u), max(abs(v), abs(w)))
        marks[x] = np.uint8(not (size <= _ZERO))
        over[x] = np.uint8(not (size <= cap))
    return bad == 0


@loop
def compare_pixels(frame, strides, shape, value, value_step, thresholds, rms, first, last,
                   marks):
    """Mark the pixels that differ by more than their lane's threshold, lines ``first`` to ``last``.

    Args:
        frame: flat; ``strides`` of lane, channel, row and pixel.
        strides, shape: int64 ``[4]``.
        value, value_step: flat, channels-last.
        thresholds, rms: the test; float64 ``[N]``.
        first, last: lines, counted over all lanes.
        marks: uint8 ``[N * H * W]``.

    Returns:
        whether all numbers of these lines are finite.
    """
    channels, height, width = shape[1], shape[2], shape[3]
    finite = True
    over = np.empty(width, np.uint8)
    sums = np.zeros((channels, width), np.float32)
    planes = channels == 3 and value_step == 3 and strides[3] == 1
    interleaved = channels == 3 and value_step == 3 and strides[3] == 3 and strides[1] == 1
    for line in range(first, last):
        threshold = np.float32(thresholds[line // height])
        start = line // height * strides[0] + line % height * strides[2]
        out = marks[line * width:(line + 1) * width]
        old = value[line * width * value_step:]
        if planes:
            plane = strides[1]
            ok = compare_three(
                frame[start:start + width], frame[start + plane:start + plane + width],
                frame[start + 2 * plane:start + 2 * plane + width], old, threshold, rms, out)
        elif interleaved:
            ok = compare_interleaved(frame[start:], old, threshold, rms, out)
        else:
            ok = compare_line(frame, start, strides[1], strides[3], old, 0, value_step, channels,
                              threshold, threshold, rms, out, over, sums, width)
        finite = finite and ok
    return finite


@loop
def compare_blocks(frame, strides, shape, value, value_step, threshold, cap, rms, first, last,
                   marks):
    """Mark the pixels that differ in blocks whose mean differs by more than the threshold.

    As `compare_pixels`, but for ``cap``, the norm that no pixel of a block that is held may
    exceed, and ``first`` and ``last``, which count rows of blocks over all lanes.
    """
    if strides[1] == 1 and strides[3] == shape[1] and value_step == shape[1]:
        return compare_flat_blocks(frame, strides, shape, value, threshold, cap, rms, first, last,
                                   marks)
    channels, height, width = shape[1], shape[2], shape[3]
    block_rows = (height + BLOCK - 1) // BLOCK
    finite = True
    over = np.empty((BLOCK, width), np.uint8)
    sums = np.empty((channels, width), np.float32)
    for block_row in range(first, last):
        lane = block_row // block_rows
        top = block_row % block_rows * BLOCK
        lines = min(BLOCK, height - top)
        sums[:] = _ZERO
        for i in range(lines):
            line = lane * height + top + i
            start = lane * strides[0] + (top + i) * strides[2]
            out, old = marks[line * width:(line + 1) * width], value[line * width * value_step:]
            if channels == 3 and value_step == 3 and strides[3] == 1:
                ok = add_three(frame[start:], frame[start + strides[1]:],
                               frame[start + 2 * strides[1]:], 1, old, cap, rms, out, over[i], sums)
            elif channels == 3 and value_step == 3 and strides[3] == 3 and strides[1] == 1:
                ok = add_three(frame[start:], frame[start + 1:], frame[start + 2:], 3, old, cap,
                               rms, out, over[i], sums)
            else:
                ok = compare_line(frame, start, strides[1], strides[3], old, 0, value_step,
                                  channels, _ZERO, cap, rms, out, over[i], sums, width)
            finite = finite and ok
        hold_blocks(sums, over, lines, (lane * height + top) * width, threshold, rms, marks)
    return finite


@loop
def compare_flat_blocks(frame, strides, shape, value, threshold, cap, rms, first, last, marks):
    """Do the same where frame and value lie alike: lines are numbers, whatever their channels."""
    channels, height, width = shape[1], shape[2], shape[3]
    block_rows, numbers = (height + BLOCK - 1) // BLOCK, width * channels
    sums, largest = np.empty(numbers, np.float32), np.empty(numbers, np.float32)
    finite = True
    for block_row in range(first, last):
        lane = block_row // block_rows
        top = block_row % block_rows * BLOCK
        lines = min(BLOCK, height - top)
        start, pixel = lane * strides[0] + top * strides[2], (lane * height + top) * width
        sums[:] = _ZERO
        largest[:] = _ZERO
        for i in range(lines):
            new = frame[start + i * strides[2]:start + i * strides[2] + numbers]
            ok = add_flat(new, value[pixel * channels + i * numbers:], sums, largest)
            finite = finite and ok
        for left in range(0, width, BLOCK):
            right = min(left + BLOCK, width)
            changed = _mean_exceeds(sums, left, right, channels, lines, threshold, rms)
            most = _ZERO
            for at in range(left * channels, right * channels):
                most = max(most, largest[at])
            if not changed and not (most <= cap):  # no norm of a pixel is more than its largest
                changed = not rms
                for i in range(lines):
                    changed = changed or _pixel_exceeds(
                        frame[start + i * strides[2]:], value[(pixel + i * width) * channels:],
                        channels, left, right, cap)
            for i in range(lines):
                there = pixel + i * width
                if changed:
                    _mark_changed(frame[start + i * strides[2]:], value[there * channels:],
                                  channels, left, right, marks[there:there + width])
                else:
                    marks[there + left:there + right] = 0
    return finite


@loop
def add_flat(new, old, sums, largest):
    """Add a line's differences to sums, and keep the largest; return whether all are finite."""
    bad = np.uint8(0)
    for i in range(sums.shape[0]):
        number = load(new, i)
        difference = number - load(old, i)
        bad |= np.uint8(not (abs(number) <= _LARGEST))
        sums[i] += difference
        size = abs(difference)
        largest[i] = size if size > largest[i] else largest[i]
    return bad == 0


@loop
def _mean_exceeds(sums, left, right, channels, lines, threshold, rms):
    pixels, size = np.float32(lines * (right - left)), _ZERO
    for c in range(channels):
        mean = _ZERO
        for x in range(left, right):
            mean += sums[x * channels + c]
        mean /= pixels
        size = size + mean * mean if rms else max(size, abs(mean))
    size = np.sqrt(size / np.float32(channels)) if rms else size
    return not (size <= threshold)


@loop
def _pixel_exceeds(new, old, channels, left, right, cap):
    for x in range(left, right):
        size = _ZERO
        for at in range(x * channels, (x + 1) * channels):
            difference = load(new, at) - load(old, at)
            size += difference * difference
        if not (np.sqrt(size / np.float32(channels)) <= cap):
            return True
    return False


@loop
def _mark_changed(new, old, channels, left, right, marks):
    for x in range(left, right):
        changed = False
        for at in range(x * channels, (x + 1) * channels):
            changed = changed or load(new, at) != load(old, at)
        marks[x] = changed


@loop
def hold_blocks(sums, over, lines, start, threshold, rms, marks):
    """Clear the marks of the blocks in a row of blocks that do not exceed the threshold."""
    channels, width = sums.shape
    for left in range(0, width, BLOCK):
        right = min(left + BLOCK, width)
        pixels = np.float32(lines * (right - left))
        size = _ZERO
        for c in range(channels):
            mean = _ZERO
            for x in range(left, right):
                mean += sums[c, x]
            mean /= pixels
            size = size + mean * mean if rms else max(size, abs(mean))
        size = np.sqrt(size / np.float32(channels)) if rms else size
        changed = not (size <= threshold)
        for i in range(lines):
            for x in range(left, right):
                changed = changed or over[i, x] != 0
        if not changed:
            for i in range(lines):
                marks[start + i * width + left:start + i * width + right] = 0


@loop
def replace_pixels(frame, strides, shape, pixels, value, value_step):
    """Write the frame's numbers at some pixels to the value."""
    channels, height, width = shape[1], shape[2], shape[3]
    for i in range(pixels.shape[0]):
        pixel = np.int64(pixels[i])
        line = pixel // width
        start = (line // height * strides[0] + line % height * strides[2]
                 + pixel % width * strides[3])
        for c in range(channels):
            store(value, pixel * value_step + c, load(frame, start + c * strides[1]))
