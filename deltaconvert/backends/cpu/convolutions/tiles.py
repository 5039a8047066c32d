"""Where Winograd's tiles of two by two pixels lie: where candidates are.

A pair of rows begins at the first row that holds a candidate, and a tile at the first column. So
blobs of a few pixels fill their tiles to 75 to 90 %.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

import numpy as np

from deltaconvert.backends.cpu.compiling.jit import loop


@loop
def find_tiles(pixels, height, width, down, across, tiles):
    """List the tiles that hold some pixels.

    Args:
        pixels: int32, flat indices over lanes, ascending.
        height, width: of a lane.
        down, across: from a row and a column of a tile to its second.
        tiles: int32 ``[tiles, 2]``, written: the upper left pixel, and which are held, as bits: 1
            and 2 in the upper row, 4 and 8 in the lower.

    Returns:
        How many there are.
    """
    count, total = pixels.shape[0], 0
    lines = np.int64(pixels[count - 1]) // width + 1 if count > 0 else np.int64(0)
    starts, paired = np.empty(lines + 1, np.int64), np.zeros(lines, np.uint8)
    waiting = np.empty((across, 2), np.int64)
    find_lines(pixels, width, starts)
    for line in range(lines):
        if starts[line] == starts[line + 1] or paired[line] != 0:
            continue
        upper, lower = pixels[starts[line]:starts[line + 1]], pixels[:0]
        if line + down < lines and line % height + down < height:
            lower = pixels[starts[line + down]:starts[line + down + 1]]
            paired[line + down] = 1
        total = find_pairs(upper, lower, line * width, (line + down) * width, width, waiting,
                           tiles, total)
    return total


@loop
def find_lines(pixels, width, starts):
    """Write where the pixels of each line begin, and the end of the last's."""
    at = 0
    for i in range(pixels.shape[0]):
        while pixels[i] >= at * width:
            starts[at] = i
            at += 1
    starts[starts.shape[0] - 1] = pixels.shape[0]


@loop
def find_pairs(upper, lower, first, below, width, waiting, tiles, total):
    """List the tiles of two lines of pixels, which begin so; return how many there are then.

    A tile begins at a column that holds a pixel and is no tile's second; ``waiting``, int64
    ``[across, 2]``, is memory for the second columns to come, and whose these are.
    """
    i, j, across = 0, 0, waiting.shape[0]
    for k in range(across):
        waiting[k, 0] = -1
    while i < upper.shape[0] or j < lower.shape[0]:
        x = upper[i] - first if i < upper.shape[0] else width
        if j < lower.shape[0]:
            x = min(x, lower[j] - below)
        held = 0
        if i < upper.shape[0] and upper[i] - first == x:
            held |= 1
            i += 1
        if j < lower.shape[0] and lower[j] - below == x:
            held |= 4
            j += 1
        k = x % across if across > 1 else 0
        if waiting[k, 0] == x:
            tiles[waiting[k, 1], 1] |= 2 * held
        else:
            tiles[total, 0], tiles[total, 1] = first + x, held
            waiting[k, 0], waiting[k, 1] = x + across, total
            total += 1
    return total
