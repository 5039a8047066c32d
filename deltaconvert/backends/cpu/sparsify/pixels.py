"""The loops of the door in: which pixels of a frame differ from the value, each by itself.

The frame is ``[N, C, H, W]`` with any strides. Three channels, in planes (PyTorch's own
order) or interleaved (a decoder's), have loops whose steps are constants, so that they
run on whole vectors.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the compiled loops: Numba infers their types)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.maps.storage import load

_ZERO = np.float32(0)
_LARGEST = np.finfo(np.float32).max
_THREE = np.float32(3)


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
            bad |= not_finite(v)
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
    for x in range(marks.shape[0]):
        r, g, b = load(red, x), load(green, x), load(blue, x)
        u, v, w = r - load(old, 3 * x), g - load(old, 3 * x + 1), b - load(old, 3 * x + 2)
        bad |= not_finite(r) | not_finite(g) | not_finite(b)
        marks[x] = exceeds(u, v, w, threshold, rms)
    return bad == 0


@loop
def compare_interleaved(new, old, threshold, rms, marks):
    """Compare one interleaved line of three channels with another, for the pixel test."""
    bad = np.uint8(0)
    for x in range(marks.shape[0]):
        r, g, b = load(new, 3 * x), load(new, 3 * x + 1), load(new, 3 * x + 2)
        u, v, w = r - load(old, 3 * x), g - load(old, 3 * x + 1), b - load(old, 3 * x + 2)
        bad |= not_finite(r) | not_finite(g) | not_finite(b)
        marks[x] = exceeds(u, v, w, threshold, rms)
    return bad == 0


@loop
def exceeds(u, v, w, threshold, rms):
    """Return 1 where a pixel of three channels differs by more than the threshold, else 0."""
    if rms:
        return np.uint8(not (np.sqrt((u * u + v * v + w * w) / _THREE) <= threshold))
    return np.uint8(not (abs(u) <= threshold)) | np.uint8(not (abs(v) <= threshold)) | np.uint8(
        not (abs(w) <= threshold))


@loop
def not_finite(number):
    """Return 1 for infinity and NaN, else 0."""
    return np.uint8(not (abs(number) <= _LARGEST))
