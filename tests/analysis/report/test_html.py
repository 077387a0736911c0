"""The HTML page: self-contained, sortable, and deaf to hostile strings."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from prunescope.analysis.report.html import prose, render_html
from prunescope.analysis.report.looks import ROWS
from prunescope.analysis.report.notebook import render_notebook
from prunescope.analysis.schema.report import Finding, Report
from prunescope.analysis.summary.labels import CHANGES
from tests.analysis.report import example

VOID = {"meta", "br", "rect", "line"}


class Page(HTMLParser):
    """Tags, attributes, text, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_are_well_formed() -> None:
    for report in (example.two_phases(), example.alone()):
        assert Page(render_html(report)).open == []


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(render_html(example.two_phases()))
    assert not page.tags & {"img", "link", "iframe", "object", "embed", "base"}
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(value and value.startswith("#") for value in links)


def test_the_policy_allows_only_our_script() -> None:
    page = render_html(example.two_phases())
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.replace("&#43;", "+")
    assert "default-src 'none'" in page


def test_hostile_strings_are_visible_and_inert() -> None:
    plain = Page(render_html(example.two_phases()))
    raw = render_html(example.hostile(example.two_phases()))
    page = Page(raw)
    assert page.tags == plain.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<img src=x" not in raw and "&lt;img src=x" in raw
    assert "\x1b" not in raw
    assert example.HOSTILE.replace("\x1b", r"\x1b") in page.text


def test_a_kernel_of_a_bare_trace_is_named() -> None:
    raw = render_html(example.alone(example.HOSTILE))
    assert "&lt;img src=x" in raw and "<img" not in raw


def test_numbers_sort_by_their_raw_value() -> None:
    raw = render_html(example.two_phases())
    assert re.search(r'data-v="21300000">21\.300</td>', raw)
    assert 'data-v=""' in raw  # an unknown sorts below every number


def test_the_ledger_is_drawn_for_every_row() -> None:
    raw = render_html(example.two_phases())
    ledger = raw[raw.index('<table class="ledger">') :]
    ledger = ledger[: ledger.index("</table>")]
    assert ledger.count("<svg") == 9
    assert ledger.count('class="mark"') == 3  # dense, promised, pruned
    rows = re.findall(r'data-row="(\w+)".*?</tr>', ledger, re.S)
    fills = re.findall(r'<rect class="row" style="fill: ([#\w]+)"', ledger)
    shown = [row for row in rows if row in CHANGES]
    assert fills == [("none" if row == "shape" else ROWS[row].colour) for row in shown]


NOT_VALID = Finding(
    id="timing-not-valid", severity="critical", text="x", evidence=[], change="y", predicted_ns=None
)


def prefill_with(**changes: Any) -> Report:
    report = example.two_phases()
    report.phases = {"prefill": msgspec.structs.replace(report.phases["prefill"], **changes)}
    return report


@pytest.mark.parametrize(
    ("changes", "said", "strokes"),
    [
        ({"findings": [NOT_VALID]}, "timing not valid", "crossed"),
        ({"token_ids": "random token ids"}, "random token ids", "dotted"),
        ({"findings": [NOT_VALID], "token_ids": "random token ids"},
         "timing not valid, random token ids", "crossed"),
    ],
)  # fmt: skip
def test_what_is_no_evidence_is_hatched_and_named(
    changes: dict[str, Any], said: str, strokes: str
) -> None:
    """Ladder: all that rests on times, two bounds, busy and realised; ledger: the ground behind its
    nine rows."""
    page = render_html(prefill_with(**changes))
    assert page.count(f'<span class="key hatch {strokes}"></span> {said}') == 2
    assert page.count(f'<i class="hatch {strokes}"') == 4
    assert page.count(f'<td class="bar hatch {strokes}">') == 9
    assert 'class="realised"' not in page and "</span> measured" not in page
    brief = render_notebook(prefill_with(**changes))
    assert f'<span class="key hatch {strokes}"></span> {said}' in brief
    assert brief.count(f'<td class="bar hatch {strokes}">') == 9


def test_evidence_is_not_hatched() -> None:
    page = render_html(prefill_with())
    assert 'class="key hatch' not in page and "bar hatch" not in page and '<i class="' not in page
    assert page.count('<rect class="realised"') == 2


def test_the_legend_names_what_is_drawn() -> None:
    ledger = example.two_phases().phases["prefill"].ledger
    assert ledger is not None
    flat = [msgspec.structs.replace(row, ns=0.0) if row.row == "shape" else row
            for row in ledger]  # fmt: skip
    assert "</span> no evidence" in render_html(prefill_with())
    assert "</span> no evidence" not in render_html(prefill_with(ledger=flat))


def test_backticks_are_code_and_escaped() -> None:
    assert prose("use `a<b` <i>") == "use <code>a&lt;b</code> &lt;i&gt;"
    # No line ends between the hyphens of an option.
    option = '<code>trace <span class="option">--prompt-len</span> a--b</code>'
    assert prose("`trace --prompt-len a--b`") == option
    assert prose("a lone ` stays") == "a lone ` stays"


def test_titles_of_columns_are_defined_on_hover() -> None:
    page = render_html(example.two_phases())
    assert (
        '<th class="n" title="the size of the same row where dense is compared with dense">' in page
    )
