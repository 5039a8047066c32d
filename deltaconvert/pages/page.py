"""A page: a title, a verdict, and sections of tables, texts and figures; no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d4d9df;--soft:#5b6570;
--good:#1a7f37;--bad:#c62828;--stripe:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--paper:#14171a;--line:#363c43;
--soft:#9aa4ae;--good:#4cc264;--bad:#ff7b72;--stripe:#1b1f24}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.8rem 0 .5rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.verdict{display:inline-block;padding:.15rem .7rem;border-radius:1rem;color:#fff;font-weight:600}
.good{background:var(--good)}.bad{background:var(--bad)}
.scroll{overflow-x:auto;margin:.6rem 0;border:1px solid var(--line);border-radius:.4rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;overflow-wrap:normal}
th,td{padding:.35rem .6rem;text-align:left;white-space:nowrap;font-variant-numeric:tabular-nums}
td.long{white-space:normal;min-width:14rem}
thead th{border-bottom:1px solid var(--line)}tbody tr:nth-child(even){background:var(--stripe)}
figure{margin:.8rem 0;background:#fff;border:1px solid var(--line);border-radius:.4rem;
padding:.3rem}figure svg{display:block;width:100%;height:auto}
.paper{background:#fff;padding:.5rem}
figcaption{color:#5b6570;font-size:.85rem;padding:.2rem .4rem}
pre{overflow-x:auto;background:var(--stripe);padding:.7rem;border-radius:.4rem;font-size:.85rem}
"""
LONG = 36  # characters; a longer cell is broken into lines


@dataclass(frozen=True)
class Table:
    """Rows of text, the first of them the header, which may be empty."""

    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """Return the table, in a box that scrolls by itself where the screen is narrow."""
        head, *body = self.rows
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        header = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
        lines = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in body)
        return (f'<div class="scroll"><table>{header}<tbody>{lines}</tbody></table></div>')


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > LONG else ""
    return f"<td{kind}>{escape(text)}</td>"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        """Return the paragraph."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Lines:
    """Text whose lines and columns matter."""

    text: str

    def html(self) -> str:
        """Return the text as it is."""
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Args:
        svg: one ``<svg>`` element.
        caption: what it shows.
    """

    svg: str
    caption: str

    def html(self) -> str:
        """Return the figure."""
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Drawing:
    """A drawing at its own size, in a box that scrolls by itself where the screen is narrow."""

    svg: str

    def html(self) -> str:
        """Return the drawing."""
        return f'<div class="scroll paper">{self.svg}</div>'


Part = Table | Text | Lines | Figure | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    parts: Sequence[Part]


def page(title: str, subtitle: str, sections: Sequence[Section],
         verdict: tuple[str, bool] | None = None) -> str:
    """Return a whole HTML page that needs no other file and no network.

    Args:
        title: in the tab, and on top.
        subtitle: under it: what of, on what.
        sections: empty ones are left out.
        verdict: a word or two, and whether they are good.
    """
    badge = "" if verdict is None else (
        f'<p><span class="verdict {"good" if verdict[1] else "bad"}">{escape(verdict[0])}'
        "</span></p>")
    body = "".join(f"<section><h2>{escape(s.title)}</h2>{''.join(p.html() for p in s.parts)}"
                   "</section>" for s in sections if s.parts)
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
            f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>{badge}'
            f"</header>{body}</body></html>\n")
