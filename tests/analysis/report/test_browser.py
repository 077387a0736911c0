"""The HTML pages in headless Chromium, on a desk and on a telephone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.compare_runs import compare
from prunescope.analysis.report import comparison
from prunescope.analysis.report.comparison import render_comparison
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.notebook import render_notebook
from tests.analysis.report import example
from tests.analysis.report.browser import WIDTHS, Detection, open_together, opened
from tests.stored import each_once, report_of

ROOT = Path(__file__).resolve().parents[3]
RANKS = ROOT / "traces" / "stories" / "slow-rank"
OUTPUT = '<!doctype html><meta charset="utf-8"><body style="margin:8px">'  # of a notebook's cell
# It overflows, complains and runs a script of its own.
WRONG = """<!doctype html><html><body><div style="width:3000px">wide</div>
<script>console.error('boo')</script></body></html>"""


@cache
def pages() -> dict[str, str]:
    """Every page that a test here looks at, by name."""
    report = report_of("tiny-static-nk")
    with each_once():
        beside = compare([ROOT / "traces"])
    predicted = prunescope.predict(model="llama-3.1-8b", device="h100-sxm", method="static-nk")
    ranks = prunescope.analyze(RANKS / "pruned", baseline=RANKS / "dense")
    return {
        "report": render_html(report),
        "comparison": comparison.render_html(beside),
        "hostile": render_html(example.hostile(example.two_phases())),
        "notebook": OUTPUT + render_notebook(report),
        "both": OUTPUT + render_comparison(beside),
        "tables": OUTPUT + predicted._repr_html_(),
        "records": OUTPUT + predicted.table._repr_html_(),
        "ranks": OUTPUT + ranks._repr_html_(),
        "wrong": WRONG,
    }  # fmt: skip


def seen(name: str, folder: Path, width: int) -> Detection:
    open_together(pages().values(), folder)
    return opened(pages()[name], folder, width)


def ordered(column: list[str]) -> list[float]:
    """Values to sort by; an unknown one is below all."""
    return [float(value) if value else float("-inf") for value in column]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_fits_its_window_and_its_tables_sort(width: int, tmp_path: Path) -> None:
    report = seen("report", tmp_path, width)
    assert report.width == width
    assert (report.overflow, report.outside, report.console) == (0, [], [])
    assert report.parts and max(report.parts) <= 1  # no scrollbar many screens down
    assert len(report.tables) >= 5
    for table in report.tables:
        first, second = ordered(table["first"]), ordered(table["second"])
        assert first == sorted(ordered(table["before"]), reverse=True)
        assert second == sorted(first)
    assert any(t["first"] != t["second"] for t in report.tables)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_hostile_kernel_is_text_in_a_browser(width: int, tmp_path: Path) -> None:
    page = seen("hostile", tmp_path, width)
    assert (page.dialogs, page.images, page.overflow, page.console) == (0, 0, 0, [])
    assert example.HOSTILE.replace("\x1b", r"\x1b") in page.text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_its_window_too(width: int, tmp_path: Path) -> None:
    page = seen("comparison", tmp_path, width)
    assert (page.width, page.overflow, page.console) == (width, 0, [])


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_no_taller_than_what_they_say(width: int, tmp_path: Path) -> None:
    """A cell of many words beside short ones, and ids that hyphens do not part."""
    for name in ("report", "comparison", "notebook", "both"):
        page = seen(name, tmp_path, width)
        assert page.overflow == 0, name
        assert page.tallest <= 120, name  # five lines, and the padding
        assert not page.parted, name


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_notebook_shows_scrolls_in_a_box_of_its_own(width: int, tmp_path: Path) -> None:
    """Tables of a prediction, and of all fields of its records; lines wrap, also those of a report
    that hold the long names of kernels."""
    for name in ("tables", "records", "ranks"):
        page = seen(name, tmp_path, width)
        assert (page.width, page.overflow, page.outside) == (width, 0, []), name


def test_the_harness_sees_what_it_is_there_to_see(tmp_path: Path) -> None:
    page = seen("wrong", tmp_path, 390)
    assert page.overflow > 2000
    assert "DIV" in page.outside
    assert any("boo" in line for line in page.console)
