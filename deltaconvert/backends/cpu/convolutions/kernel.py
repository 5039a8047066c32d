"""The product behind every convolution: rows, wherever they lie, times a packed filter.

The rows are addresses, so that neighbourhoods are read where they are and never copied. Blocks
of them run through the kernels of `product`: 57 billion multiply-adds a second on one Zen 4 core,
of the 59 that there are (``torch.mm``: 48), and 113 in bfloat16.

The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication" (2008): a piece of the filter that stays in the second cache serves all rows.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# (compiled code: Numba infers the types of its loops)

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from deltaconvert.backends.cpu.compiling.jit import loop
from deltaconvert.backends.cpu.compiling.vectors import BLOCK, MULTIPLIES_PAIRS, WIDTH
from deltaconvert.backends.cpu.convolutions.product import Pairs, Singles, WidenedPairs, product

__all__ = ["BLOCK", "PANEL", "WIDTH", "multiply_block", "multiply_rows"]

PANEL = 2 * WIDTH  # columns that are computed at a time
_MOST, _FEW = BLOCK * 2 // 3, BLOCK // 3


def _block_of(arithmetic: Any) -> Any:
    """Make `multiply_block` for a kind of numbers."""
    twelve, eight, four = (product(rows, 2, arithmetic) for rows in (BLOCK, _MOST, _FEW))
    twelve_narrow, eight_narrow, four_narrow = (
        product(rows, 1, arithmetic) for rows in (BLOCK, _MOST, _FEW))

    def block(weights, rows, vectors, addresses, segments, numbers, first, filters, ahead, out,
              out_step, add):
        if vectors == 2:
            if rows > _MOST:
                twelve(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
            elif rows > _FEW:
                eight(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
            else:
                four(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
        elif rows > _MOST:
            twelve_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
        elif rows > _FEW:
            eight_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)
        else:
            four_narrow(addresses, segments, numbers, first, filters, ahead, out, out_step, add)

    return block


_BLOCKS = {types.float32: _block_of(Singles()),
           types.uint16: _block_of(Pairs() if MULTIPLIES_PAIRS else WidenedPairs())}


def multiply_block(weights: Any, rows: int, vectors: int, addresses: int, segments: int,
                   numbers: int, first: int, filters: int, ahead: int, out: int, out_step: int,
                   add: bool) -> None:
    """Multiply a block of up to `BLOCK` rows with one or two vectors of columns.

    Args:
        weights: the array that the filter lies in: float32 or, for bfloat16, uint16. So are
            the rows.
        rows: how many; a few more are computed, so there must be addresses and room for them.
        vectors: 1 or 2.
        addresses: of a table of addresses, int64 ``[segments, BLOCK]``.
        segments: pieces of a row, each of so many ``numbers``.
        numbers: of a piece to take.
        first: bytes from each address to the first of them.
        filters: address of the filter, ``[segments, numbers, vectors * WIDTH]``; in bfloat16
            ``[segments, pairs of numbers, vectors * WIDTH, 2]``.
        ahead: address of the filter that comes next, fetched into the second cache meanwhile.
        out, out_step: address of the result's first number, float32, and bytes from a row to
            the next.
        add: to what is there.
    """
    raise NotImplementedError  # compiled code only


@overload(multiply_block)
def _multiply_block(weights, rows, vectors, addresses, segments, numbers, first, filters, ahead,
                    out, out_step, add):
    return _BLOCKS[weights.dtype]


@loop
def multiply_rows(addresses, count, pieces, filters, panels, first_panel, last_panel, new):
    """Multiply rows with a filter.

    Args:
        addresses: int64 ``[blocks, segments, BLOCK]``: where the segments of each row lie;
            those of the last block's rows behind ``count`` must be readable too.
        count: rows.
        pieces: int64 ``[P, 5]``, of the filter along the rows: first segment, segments, first
            number and numbers of each, and the numbers of a row before it (in bfloat16 a segment of
            odd length counts one more).
        filters: flat: the panels one behind the other, float32, or bfloat16 in uint16; so are
            the rows.
        panels: int64 ``[groups, Q, 4]``: where a panel begins in ``filters``, its first
            column, its vectors, and the first channel that its rows read. The last of a group
            may reach into the columns of the next group, which is computed later.
        first_panel, last_panel: of each group, which to compute; the last exclusive.
        new: float32 ``[rows of whole blocks, columns]``, written; with room for what the last
            panel reaches beyond its columns.
    """
    segments, step, size = addresses.shape[1], new.shape[1], filters.itemsize
    table, weights, out = addresses.ctypes.data, filters.ctypes.data, new.ctypes.data
    for group in range(panels.shape[0]):
        for p in range(pieces.shape[0]):
            first_segment, taken, first, numbers, before = (
                pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3], pieces[p, 4])
            for q in range(first_panel, last_panel):
                start, column, vectors, channel = (
                    panels[group, q, 0], panels[group, q, 1], panels[group, q, 2],
                    panels[group, q, 3])
                piece = weights + size * (start + before * vectors * WIDTH)
                ahead = weights + size * _next_piece(pieces, panels[group], p, q, first_panel,
                                                     last_panel)
                for block in range((count + BLOCK - 1) // BLOCK):
                    rows = table + 8 * BLOCK * (block * segments + first_segment)
                    target = out + 4 * (block * BLOCK * step + column)
                    multiply_block(filters, count - block * BLOCK, vectors, rows, taken, numbers,
                                   size * (channel + first), piece, ahead, target, 4 * step,
                                   before != 0)


@loop
def _next_piece(pieces, panels, p, q, first_panel, last_panel):
    """Return where the filter's next piece begins; the last's own beginning."""
    if q + 1 < last_panel:
        q += 1
    elif p + 1 < pieces.shape[0]:
        p, q = p + 1, first_panel
    return panels[q, 0] + pieces[p, 4] * panels[q, 2] * WIDTH
