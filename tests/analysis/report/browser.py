"""Pages in headless Chromium, as a reader sees them. No test in it.

In: a page, and one of WIDTHS in CSS pixels. Out: what a harness around it saw: overflow, the order
of a table after clicks on its heading, dialogs and console messages. A start of Chromium takes
longer than a page: what is known together is opened together, each page in frames of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

WIDTHS = (1280, 390)  # of a window on a desk, and of a telephone
FRAME = '<iframe data-src="page{}.html" style="border:0;width:{}px;height:900px"></iframe>'
HARNESS = """<!doctype html><meta charset="utf-8"><pre id="out"></pre>FRAMES
<script>
const all = [], frames = [...document.querySelectorAll('iframe')];
for (const frame of frames) frame.addEventListener('load', event => {
  const seen = {dialogs: 0};
  const view = event.target.contentWindow, page = view.document;
  for (const name of ['alert', 'confirm', 'prompt']) view[name] = () => { seen.dialogs += 1; };
  const root = page.documentElement;
  seen.width = root.clientWidth;
  seen.overflow = root.scrollWidth - root.clientWidth;
  // What sticks out of the page and can be scrolled by no box of its own.
  seen.outside = [...page.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, svg'))
    .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName);
  // How far the parts of a ledger are wider than the box around them.
  seen.parts = [...page.querySelectorAll('table.parts')]
    .map(table => table.scrollWidth - table.parentElement.clientWidth);
  seen.images = page.images.length;
  seen.tables = [];
  for (const table of page.querySelectorAll('table.sortable')) {
    const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.className === 'n');
    if (at < 0) continue;
    const read = () => [...table.tBodies[0].rows].map(row => row.cells[at].dataset.v);
    const column = {before: read()};
    for (const turn of ['first', 'second']) {
      const head = table.tHead.rows[0].cells[at];
      (head.querySelector('button') || head).click();
      column[turn] = read();
    }
    seen.tables.push(column);
  }
  const rows = [...page.querySelectorAll('tbody tr')];
  seen.tallest = Math.max(0, ...rows.map(row => row.getBoundingClientRect().height));
  // Short cells of text that stand on several lines.
  seen.parted = rows.flatMap(row => [...row.cells]).filter(cell => {
    const range = page.createRange();
    range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
    return !cell.children.length && cell.textContent.length <= 18 && lines.size > 1;
  }).map(cell => cell.textContent);
  seen.text = page.body.innerText;
  seen.title = page.title;
  all.push([frames.indexOf(event.target), seen]);
  if (all.length < frames.length) return;
  document.getElementById('out').textContent = JSON.stringify(all);
});
// Not before somebody listens: a short page would be loaded by then.
for (const frame of frames) frame.src = frame.dataset.src;
</script>
"""


@dataclass(frozen=True)
class Detection:
    """What the harness saw; `console`: lines that the page wrote to the console, `tallest`: the
    height of a table's row in CSS pixels, `parted`: short cells on several lines; `title`: of the
    page when all was done, which a script may have changed."""

    width: int
    overflow: int
    outside: list[str]
    dialogs: int
    parts: list[int]
    images: int
    tables: list[dict[str, list[str]]]
    tallest: float
    parted: list[str]
    text: str
    title: str
    console: list[str]


_seen: dict[tuple[str, int], Detection] = {}


def opened(page: str, folder: Path, width: int) -> Detection:
    """The page at a width, opened once at all of them. Skips where there is no Chromium."""
    open_together([page], folder)
    return _seen[page, width]


def open_together(pages: Iterable[str], folder: Path) -> None:
    """Open those that were not yet, at all widths, in one Chromium: `opened` then knows them."""
    new = [page for page in dict.fromkeys(pages) if (page, WIDTHS[0]) not in _seen]
    if new:
        _open(new, folder)


def _open(pages: list[str], folder: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        (folder / f"page{number}.html").write_text(page, encoding="utf-8")
    shown = [(number, width) for number in range(len(pages)) for width in WIDTHS]
    frames = "".join(FRAME.format(*one) for one in shown)
    (folder / "harness.html").write_text(HARNESS.replace("FRAMES", frames), encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
         "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0",
         # The harness and the page are two files: each would be a stranger to the other.
         "--allow-file-access-from-files", "--disable-web-security", "--virtual-time-budget=30000",
         f"--window-size={max(WIDTHS) + 40},2000", "--dump-dom",
         (folder / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    for frame, told in json.loads(unescape(found[1])):
        number, width = shown[frame]
        # A line that names another page is of that one alone.
        named = [(re.search(r"/page(\d+)\.html", line), line) for line in lines]
        console = [line for of, line in named if of is None or int(of[1]) == number]
        _seen[pages[number], width] = Detection(**told, console=console)
