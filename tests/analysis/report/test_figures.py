"""Figures: sizes, fonts, titles, and where a LaTeX file finds them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from prunescope.analysis.report import figures, looks, titles
from prunescope.analysis.report.ledger_view import waterfall
from prunescope.analysis.report.write import write_report
from prunescope.analysis.schema.report import Finding, Report, Row
from tests.analysis.report import example
from tests.analysis.report.drawn import drawn, drawn_once, kept_files

__all__ = ["drawn_once"]


def one_phase(report: Report) -> Report:
    (name, phase), *_ = report.phases.items()
    return msgspec.structs.replace(report, phases={name: phase})


def files_of_a_pair(ending: str) -> dict[str, bytes]:
    files = kept_files(example.two_phases(), "png", "pdf", "svg")
    return {name: data for name, data in files.items() if name.endswith(ending)}


def test_png_is_one_column_wide_at_300_dpi() -> None:
    files = files_of_a_pair("png")
    assert set(files) == {"ladder-prefill.png", "ledger-prefill.png", "ladder-decode.png",
                          "ledger-decode.png"}  # fmt: skip
    for data in files.values():
        assert data.startswith(b"\x89PNG")
        (width,) = struct.unpack(">I", data[16:20])
        assert width == round(84 / 25.4 * 300)


def test_pdf_fonts_are_type_42() -> None:
    for data in files_of_a_pair("pdf").values():
        assert data.startswith(b"%PDF")
        assert b"/CIDFontType2" in data and b"/Type3" not in data


def test_figures_are_reproducible() -> None:
    """A ladder and a ledger, in each format, also where another phase was drawn beside them."""
    first = files_of_a_pair("")
    again = figures.figure_files(one_phase(example.two_phases()), "png", "pdf", "svg")
    assert len(again) == 6
    assert again == {name: first[name] for name in again}


def test_a_trace_alone_shows_its_kinds() -> None:
    assert set(figures.figure_files(example.alone(), "svg")) == {"kinds-trace.svg"}


def figures_of(report: Report) -> list[Figure]:
    return list(drawn(figures.figure_files, report).values())


@cache
def figures_of_a_pair() -> list[Figure]:
    """A ladder and a ledger of prefill, and of decode."""
    return figures_of(example.two_phases())


@pytest.mark.parametrize(
    "plotted",
    [
        figures_of_a_pair,
        lambda: figures_of(example.alone()),
        lambda: figures_of(one_phase(example.hostile(example.two_phases()))),
    ],
    ids=["pair", "alone", "hostile"],
)
def test_no_text_overlaps_or_leaves_the_page(plotted: Callable[[], list[Figure]]) -> None:
    for figure in plotted():
        (axes,) = figure.axes
        texts = [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, *axes.get_xticklabels()]
        low, high = axes.get_xlim()
        outside = {id(t) for t, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
                   if not low <= x <= high}  # fmt: skip
        texts += [t for legend in figure.legends for t in legend.get_texts()]
        texts += [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
        boxes = [t.get_window_extent() for t in texts if t.get_text() and id(t) not in outside]
        # A box is a whole line high, with room for letters that the text may not have.
        for a, b in combinations([box.expanded(1, 0.75) for box in boxes], 2):
            assert not a.overlaps(b)
        page = figure.bbox
        assert all(b.x0 >= page.x0 - 1 and b.x1 <= page.x1 + 1 for b in boxes)


def test_every_axis_names_its_unit() -> None:
    labels = [figure.axes[0].get_xlabel() for figure in figures_of_a_pair()]
    assert labels == [
        "speedup (dense ÷ pruned), prefill", "time of a step (ms), prefill, unprofiled",
        "speedup (dense ÷ pruned), decode", "time of a step (ms), decode, unprofiled",
    ]  # fmt: skip


def test_every_figure_says_what_it_shows_and_in_which_unit() -> None:
    ladder, ledger, *_ = figures_of_a_pair()
    title = ledger.get_suptitle()
    assert title.startswith("Where the time of a step went\n") and title.endswith(
        "static-nk, prefill"
    )
    assert [t.get_text() for t in ladder.legends[0].get_texts()] == [
        "bound", "measured", "95 % interval", "1× (dense)"
    ]  # fmt: skip
    # The row without evidence, 0.05 of 140 ms, is a hair whose colour nobody sees.
    # Rows have their colours in every figure, and are named at the axis.
    assert [t.get_text() for t in ledger.legends[0].get_texts()] == ["95 % interval"]
    colours = {str(p.get_gid()).split("_2")[0]: to_hex(p.get_facecolor())
               for p in ledger.axes[0].patches if str(p.get_gid()).startswith("row-")}  # fmt: skip
    assert colours["row-coverage"] == looks.ROWS["coverage"].colour.lower()
    (broken,) = [x for x in ledger.axes[0].lines if x.get_gid() == "broken-axis"]
    assert ledger.axes[0].get_xlim()[0] > 0 and broken is not None
    assert "ms" in [t.get_text() for t in ledger.axes[0].texts]  # above the numbers at the right


NOT_VALID = Finding(
    id="timing-not-valid", severity="critical", text="x", evidence=[], change="y", predicted_ns=None
)


@pytest.mark.parametrize(
    ("changes", "said", "hatch"),
    [
        ({}, None, None),
        ({"findings": [NOT_VALID]}, "timing not valid", "xxxx"),
        ({"token_ids": "random token ids"}, "random token ids", "oo"),
        ({"findings": [NOT_VALID], "token_ids": "random token ids"},
         "timing not valid, random token ids", "xxxx"),
        ({"realised_ci95": None}, "no interval", "----"),
        ({"realised_ci95": None, "steps": 1, "unprofiled_ns": None}, "one step: no interval",
         "----"),
    ],
)  # fmt: skip
def test_what_is_no_evidence_is_hatched_and_named(
    changes: dict[str, Any], said: str | None, hatch: str | None
) -> None:
    """Ladder: the bars of measured times; ledger: the ground behind all rows. Rows and bounds have
    intervals whether the speedup has one or not."""
    report = example.two_phases()
    phase = report.phases["prefill"]
    assert phase.ladder is not None
    ladder = msgspec.structs.replace(
        phase.ladder, **{k: v for k, v in changes.items() if k == "realised_ci95"}
    )
    others = {k: v for k, v in changes.items() if k != "realised_ci95"}
    report.phases = {"prefill": msgspec.structs.replace(phase, ladder=ladder, **others)}
    ladder_figure, ledger_figure = figures_of(report)
    hatches = [patch.get_hatch() or None for patch in ladder_figure.axes[0].patches]
    rests = None if hatch == "----" else hatch  # on times: coverage and roofline bound, busy
    assert hatches == [None, None, rests, rests, rests, hatch]
    ground = [p.get_hatch() for p in ledger_figure.axes[0].patches if p.get_zorder() < 0]
    marks = {ladder_figure: hatch, ledger_figure: hatch if hatch != "----" else None}
    assert ground == [one for one in (marks[ledger_figure],) if one]
    for figure, mark in marks.items():
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert (said in labels) == (mark is not None)
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_an_interval_that_is_not_seen_is_not_in_the_legend() -> None:
    """Each interval as narrow as a thousandth of its value: a dot on the bar."""
    report = example.two_phases()
    phase = report.phases["prefill"]
    assert phase.ladder is not None and phase.ledger is not None
    ladder = phase.ladder
    narrow = {f"{bound}_ci95": [x, 1.0001 * x]
              for bound in ("realised", "busy", "coverage", "roofline")
              if (x := getattr(ladder, bound))}  # fmt: skip
    ladder = msgspec.structs.replace(ladder, **narrow)
    rows = [
        msgspec.structs.replace(row, ci95=row.ci95 and [row.ns, row.ns]) for row in phase.ledger
    ]
    report.phases = {"prefill": msgspec.structs.replace(phase, ladder=ladder, ledger=rows)}
    for figure in figures_of(report):
        texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
        assert "95 % interval" not in texts


def test_dollars_are_not_mathematics() -> None:
    report = example.two_phases()
    report.phases = {r"$\frac{1}{0}$ $x": report.phases["prefill"]}
    (svg, _) = figures.figure_files(report, "svg").values()
    assert rb"$\frac{1}{0}$ $x" in svg


def test_a_negative_row_goes_back_and_the_waterfall_ends_at_the_pruned_wall() -> None:
    rows = example.prefill_ledger()
    bars, (low, high) = waterfall(rows)
    named = {row.row: bar for row, bar in zip(rows, bars, strict=True)}
    assert named["added_work"].end < named["added_work"].start
    assert named["added_work"].tone == "gain" and named["shape"].tone == "quiet"
    assert named["launch_idle"].end == pytest.approx(named["pruned"].end)
    assert low + named["dense"].end * (high - low) == pytest.approx(140e6)
    assert all(0 <= x <= 1 for bar in bars for x in (bar.start, bar.end))


@pytest.mark.parametrize("dense", [0.0, 1.0, 140e6])
def test_dense_against_dense_can_be_drawn(dense: float) -> None:
    names = ["dense", "promised", "coverage", "pruned"]
    rows = [Row(row=name, ns=0.0 if name == "coverage" else dense) for name in names]
    bars, (low, high) = waterfall(rows)
    assert low < high
    assert len({bar.end for bar in bars}) == 1


DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
\input{png/report}
\input{pdf-png/report}
\input{svg/report}
\end{document}
"""


@pytest.mark.usefixtures("drawn_once")
def test_a_figure_is_shown_or_its_absence_told(tmp_path: Path) -> None:
    """The PDF where there is one, else the PNG; LaTeX cannot read an SVG."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX has no siunitx")
    for folder in ("png", "pdf-png", "svg"):
        formats = ("tex", *folder.split("-"))
        write_report(example.two_phases(), tmp_path / folder, formats=formats, label_prefix=folder)
    (tmp_path / "doc.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "doc.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "doc.log").read_text(errors="replace").replace("\n", "")
    used = set(re.findall(r"<use\s+((?:png|pdf-png|svg)/ladder-prefill\.\w+)", log))
    assert used == {"png/ladder-prefill.png", "pdf-png/ladder-prefill.pdf"}
    told = set(re.findall(r"Package prunescope Warning: no ([\w-]+)/", log))
    assert told == {"svg"}


def test_a_long_model_name_is_cut_before_the_phase() -> None:
    report = example.two_phases()
    report.subject = {**report.subject, "model": "a" * 90, "method": "static-m"}
    title = titles.short_subject(report, "prefill", 55)
    assert len(title) == 55 and title.endswith("a…, static-m, prefill")


@pytest.mark.parametrize("no_family", ["outside", "unknown"])
def test_what_is_no_family_is_no_word_of_a_title(no_family: str) -> None:
    report = example.two_phases()
    phase = report.phases["prefill"]
    assert phase.family is not None
    family = msgspec.structs.replace(phase.family, id=no_family)
    report.phases = {"prefill": msgspec.structs.replace(phase, family=family)}
    report.subject.pop("method", None)
    assert no_family not in titles.short_subject(report, "prefill")
