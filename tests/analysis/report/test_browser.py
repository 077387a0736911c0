"""The HTML pages in headless Chromium, on a desk and on a telephone."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.compare import compare
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import comparison
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.notebook import render_comparison, render_notebook
from tests.analysis.report import example
from tests.analysis.report.browser import WIDTHS, opened

ROOT = Path(__file__).resolve().parents[3]
RANKS = ROOT / "traces" / "stories" / "slow-rank"


def ordered(column: list[str]) -> list[float]:
    """Values to sort by; an unknown one is below all."""
    return [float(value) if value else float("-inf") for value in column]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_fits_its_window_and_its_tables_sort(width: int, tmp_path: Path) -> None:
    seen = opened(render_html(analyze(ROOT / "traces" / "tiny-static-nk").report), tmp_path, width)
    assert seen.width == width
    assert (seen.overflow, seen.outside, seen.console) == (0, [], [])
    assert seen.parts and max(seen.parts) <= 1  # no scrollbar many screens down
    assert len(seen.tables) >= 5
    for table in seen.tables:
        first, second = ordered(table["first"]), ordered(table["second"])
        assert first == sorted(ordered(table["before"]), reverse=True)
        assert second == sorted(first)
    assert any(t["first"] != t["second"] for t in seen.tables)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_hostile_kernel_is_text_in_a_browser(width: int, tmp_path: Path) -> None:
    seen = opened(render_html(example.hostile(example.two_phases())), tmp_path, width)
    assert (seen.dialogs, seen.images, seen.overflow, seen.console) == (0, 0, 0, [])
    assert example.HOSTILE.replace("\x1b", r"\x1b") in seen.text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_its_window_too(width: int, tmp_path: Path) -> None:
    page = comparison.render_html(compare([ROOT / "traces"]))
    seen = opened(page, tmp_path, width)
    assert (seen.width, seen.overflow, seen.console) == (width, 0, [])


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_no_taller_than_what_they_say(width: int, tmp_path: Path) -> None:
    """A cell of many words beside short ones, and ids that hyphens do not part."""
    report = analyze(ROOT / "traces" / "tiny-static-nk").report
    beside = compare([ROOT / "traces"])
    head = '<!doctype html><meta charset="utf-8"><body style="margin:8px">'
    pages = {
        "report": render_html(report), "comparison": comparison.render_html(beside),
        "notebook": head + render_notebook(report), "both": head + render_comparison(beside),
    }  # fmt: skip
    for name, page in pages.items():
        seen = opened(page, tmp_path / name, width)
        assert seen.overflow == 0, name
        assert seen.tallest <= 120, name  # five lines, and the padding
        assert not seen.parted, name


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_notebook_shows_scrolls_in_a_box_of_its_own(width: int, tmp_path: Path) -> None:
    """Tables of a prediction, and of all fields of its records; lines wrap, also those of a report
    that hold the long names of kernels."""
    found = prunescope.predict(model="llama-3.1-8b", device="h100-sxm", method="static-nk")
    head = '<!doctype html><meta charset="utf-8"><body style="margin:8px">'
    for name, shown in {
        "tables": found._repr_html_(),
        "records": found.table._repr_html_(),
        "report": prunescope.analyze(RANKS / "pruned", baseline=RANKS / "dense")._repr_html_(),
    }.items():
        seen = opened(head + shown, tmp_path / name, width)
        assert (seen.width, seen.overflow, seen.outside) == (width, 0, []), name


def test_the_harness_sees_what_it_is_there_to_see(tmp_path: Path) -> None:
    """A page that overflows, complains and runs a script of its own."""
    page = """<!doctype html><html><body><div style="width:3000px">wide</div>
    <script>console.error('boo')</script></body></html>"""
    seen = opened(page, tmp_path, 390)
    assert seen.overflow > 2000
    assert "DIV" in seen.outside
    assert any("boo" in line for line in seen.console)
