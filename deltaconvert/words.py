"""Words and tables for messages."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

MOST_LISTED = 8


def a_kind(value: object) -> str:
    """Return a value's type with its article."""
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Names that may have been meant, as the end of a message."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def capped(items: Sequence[str]) -> str:
    """A list with commas, cut where it is long."""
    more = len(items) - MOST_LISTED
    return ", ".join(items[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def text_table(rows: Sequence[Sequence[str]], align: str = "r") -> str:
    """Lay rows out in columns, the first to the left, the others as said (``l`` or ``r``)."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i == 0 or align == "l" else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count(number: int, what: str) -> str:
    """Return ``1 frame`` or ``2 frames``."""
    return f"{number} {what}" + ("" if number == 1 else "s")
