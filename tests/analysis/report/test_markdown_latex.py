"""Markdown and LaTeX: whole tables, escaped strings, and a document that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.latex_head import table_row
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.printing import Printing, printed_as
from prunescope.analysis.report.write import write_report
from prunescope.analysis.schema.report import FamilyVerdict, Report
from prunescope.analysis.schema.sides import Unprofiled
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example
from tests.analysis.report.drawn import drawn_once

__all__ = ["drawn_once"]

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
\input{report.tex}
\input{../alone/report.tex}
\input{../hostile/report.tex}
\end{document}
"""


def latex_of(report: Report, label_prefix: str) -> str:
    with printed_as(Printing(label_prefix=f"{label_prefix}-")):
        return render_latex(report)


def test_markdown_tables_are_rectangular() -> None:
    for report in (example.two_phases(), example.hostile(example.two_phases())):
        blocks = re.findall(r"(?:^\|.*\n)+", render_markdown(report), flags=re.MULTILINE)
        assert len(blocks) >= 10
        for block in blocks:
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_markdown_names_rows_with_units() -> None:
    text = render_markdown(example.two_phases())
    assert "| coverage | **+9.20** | +6.6 % | \\[8.90, 9.60\\] | ±0.11 |" in text
    assert "| row | time (ms) |" in text
    assert "**1.16× faster \\[1.14, 1.17\\] of the promised 1.33×" in text


def test_markdown_makes_hostile_strings_inert() -> None:
    markdown_it = pytest.importorskip("markdown_it")
    text = render_markdown(example.hostile(example.two_phases()))
    assert "\x1b" not in text and "<img" not in text
    rendered = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "<img" not in rendered and "<a " not in rendered
    assert "&lt;img src=x onerror=alert(1)&gt;" in rendered


def test_latex_shows_hostile_kernels_as_text() -> None:
    text = render_latex(example.alone(example.HOSTILE))
    assert r"\input{x}" not in text and "\x1b" not in text
    assert r"{\char92}" in text
    assert text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_latex_numbers_are_ready_for_siunitx() -> None:
    text = render_latex(example.two_phases())
    assert r"coverage & +9.20 & +6.6 &" in text
    assert r"added work & -1.50 & -1.1 &" in text
    assert "S[table-format=+3.3,retain-explicit-plus]" in text
    assert r"\SI" not in text and r"\si{\milli\second}" in text


@pytest.mark.usefixtures("drawn_once")
def test_latex_compiles(tmp_path: Path) -> None:
    """A pair from its own folder, a trace alone, and a report with the attack in every string."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    found = subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("LaTeX has no siunitx")
    for name, report, ending in (
        ("pair", example.two_phases(), "pdf"),
        ("alone", example.alone(), "pdf"),
        ("hostile", example.hostile(example.two_phases()), "png"),
    ):
        write_report(report, tmp_path / name, formats=("tex", ending), label_prefix=name)
    (tmp_path / "pair" / "doc.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex"],
        cwd=tmp_path / "pair", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


TWO = r"""\documentclass{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
\input{../runs/first_run/report.tex}
\clearpage
\input{../runs/second/report}
\clearpage
\input{../runs/one/table-ledger-prefill.tex}\input{../runs/one/figure-ledger-prefill}
See \ref{tab:a-ledger-prefill}, \ref{fig:b-ladder-decode} and \ref{tab:c-ledger-prefill}.
\end{document}
"""


@pytest.mark.usefixtures("drawn_once")
def test_two_reports_in_one_paper_without_a_warning(tmp_path: Path) -> None:
    """Read from another folder: figures are found, labels differ, and parts stand alone."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX has no siunitx")
    for folder, prefix in (("first_run", "a"), ("second", "b"), ("one", "c")):
        where = tmp_path / "runs" / folder
        write_report(example.two_phases(), where, formats=("tex", "pdf"), label_prefix=prefix)
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "doc.tex").write_text(TWO)
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape",
             "doc.tex"],
            cwd=paper, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    log = (paper / "doc.log").read_text(errors="replace")
    assert [line for line in log.splitlines() if re.search("Warning|Overfull", line)] == []
    assert log.count("/first\\_run/ladder-prefill.pdf") + log.count("_run/ladder-prefill.pdf")
    assert "ledger-prefill.pdf" in log


def test_captions_say_model_phase_device_and_n() -> None:
    text = latex_of(example.two_phases(), "a")
    captions = re.findall(r"\\caption\{(.*)\}\\label", text)
    assert len(captions) >= 8
    for caption in (c for c in captions if c.startswith(("Ladder", "Ledger", "Speedup"))):
        assert re.search(r"n~=~\d+", caption), caption
        assert re.search("prefill|decode", caption)
        assert "SmolLM2-135M" in caption and "cpu, 2 threads" in caption
    assert all(f"{kind}:a-" in text for kind in ("tab", "fig"))


def test_a_prefix_that_is_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="label-prefix"):
        write_report(example.alone(), tmp_path / "r", formats=("tex",), label_prefix="a_b")


def test_every_caption_has_the_whole_name_the_method_the_kind_of_phase_and_n() -> None:
    report = example.alone()
    (name,) = report.phases
    report.subject |= {"name": "SmolLM2-135M-Instruct.Q4_K_M-and-more", "method": None}
    phase = report.phases[name]
    phase.family = FamilyVerdict(id="static-nk-mlp", confidence=1.0, evidence=[])
    phase.phase_kind = {"kind": "prefill", "confidence": 1.0, "evidence": []}
    text = render_latex(report).replace(r"\allowbreak{}", "")  # where a line may end
    captions = re.findall(r"\\caption\{(?!Checklist)(.*)\}\\label", text)
    assert captions
    for caption in captions:
        assert r"SmolLM2-135M-Instruct.Q4\_K\_M-and-more pruned by static-nk-mlp" in caption
        assert "(prefill)" in caption
        assert re.search(r"n~=~\d+", caption), caption


def test_a_caption_says_in_how_many_placements_the_samples_lie() -> None:
    report = example.two_phases()
    timed = Unprofiled(
        median=121e6, mean=121e6, ci95=[120e6, 122e6], samples=[121_000_000] * 8,
        placements=[2, 2, 2, 2], placement_cost_ns=3.5e9,
    )  # fmt: skip
    phase = report.phases["prefill"]
    assert phase.baseline is not None
    phase.unprofiled_ns = phase.baseline.unprofiled_ns = timed
    text = render_latex(report)
    assert "over 4 placements of medians, n~=~8 unprofiled samples a side" in text
    assert "besides them" not in text


def test_a_bracket_at_the_begin_of_a_row_is_no_argument_of_the_row_before() -> None:
    assert table_row(["[x](y)", "1"]) == r"{}[x](y) & 1 \\"
    assert table_row(["x", "[1, 2]"]) == r"x & [1, 2] \\"
