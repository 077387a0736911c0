"""A string of a trace is shown whole and does nothing, in every target language."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.report import escape
from prunescope.analysis.schema.encode import json_bytes
from tests.analysis.report.example import HOSTILE

markdown_it = pytest.importorskip("markdown_it")

ANY = st.text(st.characters(codec="utf-8"), max_size=60)
NASTY = st.text(
    st.sampled_from("<>&|`$@\\*_[]~#!-+.=:/(){}^%\"' \n\t\r\x1b\u202eaw1é中"), max_size=40
)


@given(ANY)
def test_clean_text_holds_no_control_or_format_character(text: str) -> None:
    shown = escape.clean(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(ANY | NASTY)
def test_json_reads_back_and_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    written = json_bytes({"name": text})
    assert json.loads(written) == {"name": text}
    plain = written.decode().replace("\n", "")
    assert not {c for c in plain if unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c)
                in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}}  # fmt: skip


def test_escape_characters_are_spelled_out() -> None:
    assert escape.clean("\x1b[31m\u202e\U000e0001") == r"\x1b[31m\u202e\U000e0001"
    assert escape.clean("attn_fwd<128, 64>") == "attn_fwd<128, 64>"
    assert escape.clean("a\u3164b\ufe0f\U000e0101") == r"a\u3164b\ufe0f\U000e0101"
    assert escape.clean("Z" + "\u0301" * 80 + "x") == "Z" + "\u0301" * 4 + "…x"
    assert escape.clean("e\u0323\u0301") == "e\u0323\u0301"


@given(NASTY)
def test_markdown_renders_as_the_same_text_without_any_markup(text: str) -> None:
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    rendered = parser.render(f"x {escape.markdown(text)} x")
    tags = re.findall(r"<(/?[A-Za-z][^>]*)>", rendered)
    assert tags == ["p", "/p"]
    shown = parser.parseInline(f"x {escape.markdown(text)} x")[0].children
    joined = "".join(token.content for token in shown)
    # A run of blanks is one blank in any paragraph.
    assert joined.split() == f"x {escape.clean(text)} x".split()


@given(NASTY)
def test_a_name_in_a_markdown_table_stays_in_its_cell(text: str) -> None:
    table = f"| a | b |\n|---|---|\n| {escape.markdown_code(text) or 'x'} | 2 |\n"
    rendered = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(table)
    assert rendered.count("<td") == 2
    assert set(re.findall(r"<([a-z]+)", rendered)) <= {
        "table", "thead", "tbody", "tr", "th", "td", "code",
    }  # fmt: skip


def test_markdown_makes_no_links_or_mentions() -> None:
    for text in ("http://evil.example", "www.evil.example", "a@evil.example", "[x](http://e)"):
        shown = escape.markdown(text)
        assert "://" not in shown and "www." not in shown and "@" not in shown
        assert "](" not in shown.replace("\\]", "")


@given(ANY)
def test_latex_has_no_active_character_but_in_known_commands(text: str) -> None:
    shown = escape.latex(text)
    assert shown.isascii()
    known = (
        r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|dots|dag"
        r"|textasciigrave|textquotesingle|textendash)\{\}|\\ensuremath\{(\\[a-z]+|-|\^\{T\})\}"
        r"|\\ensuremath\{\\Sigma\}|\\[{}$&#%_]|\{\\char34\}|-\{\}"
        r"|(?<=\d)~(?=\\%|[nmkMGTsBF])|\bn~=~(?=\d)"  # no line ends before a unit
    )
    assert not re.search(r"[\\{}$&#%_^~<>|\"`']", re.sub(known, "", shown))


def test_latex_shows_the_attack_as_text() -> None:
    shown = escape.latex(HOSTILE)
    assert r"\input{x}" not in shown
    assert r"\textbackslash{}input\{x\}" in shown
    assert r"\textbackslash{}x1b" in shown


@given(NASTY)
def test_no_cell_starts_a_formula(text: str) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow([escape.cell(text)])
    (row,) = csv.reader(io.StringIO(out.getvalue()))
    assert not row[0].lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\uff1d1"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert escape.cell(text) == f"'{escape.clean(text)}"


@given(ANY)
def test_ascii_text_is_ascii(text: str) -> None:
    assert escape.ascii_only(text).isascii()


def test_a_backtick_is_escaped_and_still_reads_well() -> None:
    assert escape.markdown("by `trace` | x") == r"by \`trace\` &#124; x"


def test_no_line_of_latex_ends_between_a_number_and_its_unit() -> None:
    shown = escape.latex("99.2 % of 107.82 ms at 25.11 GB/s, n = 4 of 4 samples in 2 placements")
    assert shown == r"99.2~\% of 107.82~ms at 25.11~GB/s, n~=~4 of 4 samples in 2 placements"


def test_a_long_name_in_a_caption_may_break_and_a_short_one_may_not() -> None:
    name = "of h100_qwen_activations_gathered.json.gz, n = 3"
    long = escape.latex_caption(name)
    assert long.replace(r"\allowbreak{}", "") == escape.latex(name)
    assert r"h100\_\allowbreak{}qwen" in long and r".\allowbreak{}gz" in long
    short = "tiny_llama at s = 0.5"
    assert escape.latex_caption(short) == escape.latex(short)
