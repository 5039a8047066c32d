"""Looking at a page in a real browser, as wide as a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PHONE_PX = 390

# The page in a frame as wide as a phone; what it measures replaces all text.
OUTER = """<!DOCTYPE html><body><iframe id="phone" style="width:{width}px;height:800px;border:0"
srcdoc="{page}"></iframe><script>
document.getElementById("phone").onload = event => {{
  const seen = event.target.contentDocument, root = seen.documentElement;
  const overflowing = [...seen.querySelectorAll("body *")].filter(e =>
    !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > root.clientWidth + 1);
  const sizes = [...seen.querySelectorAll("figure svg text")].map(
    e => e.getBoundingClientRect().height);
  document.body.textContent = "MEASURED" + JSON.stringify({{
    width: root.clientWidth, scroll_width: root.scrollWidth,
    overflowing: overflowing.map(e => e.outerHTML.slice(0, 80)),
    text: seen.body.innerText, figures: seen.querySelectorAll("figure svg").length,
    font_px: parseFloat(event.target.contentWindow.getComputedStyle(seen.body).fontSize),
    least_label_px: Math.min(...sizes, 99),
    drawn: [...seen.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect().height),
    external: [...seen.querySelectorAll("[src], link")].map(e => e.outerHTML.slice(0, 80)),
  }}) + "MEASURED";
}};</script></body>"""


def browser() -> str:
    """The path of a Chromium; the test is skipped, by name, without one."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium to look at the page with: apt-get install chromium")


def looked_at(page: str, folder: Path) -> dict[str, Any]:
    """Show a page and return what it measured."""
    program = browser()
    outer = folder / "outer.html"
    outer.write_text(OUTER.format(width=PHONE_PX, page=html.escape(page)), encoding="utf-8")
    done = subprocess.run(
        [program, "--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu",
         "--virtual-time-budget=5000",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"MEASURED(.*)MEASURED", done.stdout, re.DOTALL)
    assert found, f"the page did not load: {done.stdout[:500]}\n{done.stderr[-2000:]}"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured


def assert_reads_on_a_phone(page: str, folder: Path) -> dict[str, Any]:
    """The page fits the width, its letters are large enough, and it asks for no other file."""
    seen = looked_at(page, folder)
    assert seen["width"] == PHONE_PX
    assert seen["scroll_width"] <= PHONE_PX, seen["overflowing"]
    assert seen["overflowing"] == []
    assert seen["font_px"] >= 14
    assert seen["least_label_px"] >= 7
    assert all(height > 100 for height in seen["drawn"])
    assert seen["external"] == []
    return seen
