"""Figures as they are printed: their width, their type, their captions, and an article of two."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from prunescope.analysis.pareto.write import write_pareto
from prunescope.analysis.report.comparison_figure import comparison_pictures
from prunescope.analysis.report.figure_style import plotting
from prunescope.analysis.report.figures import report_pictures
from prunescope.analysis.report.pareto_figures import pareto_pictures
from prunescope.analysis.report.picture import Picture, files_of_pictures
from prunescope.analysis.report.predict_figure import curve_files
from prunescope.analysis.report.printing import Printing, printed_as, printing_of, read_width
from prunescope.analysis.report.write import write_report
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.paper.test_paper_figures import of_one_cell
from tests.analysis.predict.test_grid import ask
from tests.analysis.report import example
from tests.analysis.report.test_legends import one_run, pair, sweep
from tests.analysis.test_compare import rows

_LEAST = 6.0  # pt


def pictures() -> Iterator[Picture]:
    """Every kind of figure that has a caption, but that of a prediction."""
    yield from report_pictures(pair())
    yield from report_pictures(one_run())
    yield from pareto_pictures(sweep())
    yield from comparison_pictures(Comparison(tool="t", baseline=None, rows=rows(4)))
    yield from of_one_cell().figures


def plotted(picture: Picture) -> Figure:
    with plotting():
        figure = picture.plot()
    assert figure is not None, picture.stem
    return figure


def test_every_figure_is_as_wide_as_it_is_printed_and_its_type_can_be_read() -> None:
    with printed_as(printing_of(["tex", "pdf"])):
        for picture in pictures():
            figure = plotted(picture)
            assert figure.get_figwidth() * 25.4 == pytest.approx(84), picture.stem
            sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
            assert min(sizes) >= _LEAST, picture.stem
            assert not figure.get_suptitle(), picture.stem  # its caption stands below it
            assert figure.get_figheight() < 8, picture.stem


@pytest.mark.parametrize(("width", "points"), [("column", 238.1), ("page", 504.6), ("121", 343.0)])
def test_pdfs_have_the_width_that_was_asked_for(width: str, points: float) -> None:
    """84, 178 and 121 mm, of 72 / 25.4 points each."""
    wanted = [picture for picture in pictures() if picture.stem in ("ledger-prefill", "comparison")]
    with printed_as(printing_of(["pdf"], width=width, font="serif")):
        files = files_of_pictures(wanted, ["pdf"], "t")
        files |= curve_files(ask(method="static-m", curves=True), ["pdf"])
    assert len(files) == 3
    for data in files.values():
        box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ", data)
        assert box is not None and float(box[1]) == pytest.approx(points, abs=0.5)
        assert b"/Type3" not in data and b"STIX" in data


def test_a_figure_across_both_columns_has_an_environment_of_its_own() -> None:
    (picture, *_) = report_pictures(example.two_phases())
    for width, kind in (("page", "figure*"), ("column", "figure"), ("178", "figure")):
        with printed_as(printing_of(["tex"], width=width, label_prefix="a-")):
            assert picture.snippet.startswith(f"\\prunescopedraw{{{kind}}}{{ladder-prefill}}")
            assert r"\label{fig:a-ladder-prefill}" in picture.snippet


@pytest.mark.parametrize("width", ["narrow", "59", "401", "1e3", "nan", 20, ""])
def test_what_is_no_width_is_refused(width: str | float) -> None:
    with pytest.raises(PrunescopeError, match="is no width of a figure"):
        read_width(width)


def test_what_is_no_typeface_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="--font 'comic'"):
        printing_of(["pdf"], font="comic")


def test_without_a_caption_the_title_stands_in_the_figure() -> None:
    (picture, *_) = report_pictures(example.two_phases())
    with printed_as(printing_of(["png"])):
        assert plotted(picture).get_suptitle()


def test_captions_stand_alone_and_alternative_texts_name_numbers() -> None:
    report = example.two_phases()
    for phase in report.phases.values():
        phase.workload = PhaseWorkload(
            batch=4, prompt_len=512, context=512, dtype="bf16", mode="eager"
        )
    every = list(report_pictures(report))
    assert [p.stem for p in every] == [
        "ladder-prefill", "ledger-prefill", "ladder-decode", "ledger-decode"
    ]  # fmt: skip
    for picture in every:
        phase = picture.stem.partition("-")[2]
        for words in ("static-nk", "s = 0.25", phase, "batch 4", "512 tokens", "bf16", "n = 20"):
            assert words in picture.caption, (picture.stem, words)
        assert re.search(r"\d", picture.alt)


def test_every_sentence_of_a_caption_begins_with_a_capital(tmp_path: Path) -> None:
    paths = write_report(example.two_phases(), tmp_path, formats=("tex", "pdf"))
    for path in paths:
        for caption in re.findall(r"\\caption\{(.*?)\}\\label", path.read_text(errors="replace")):
            assert not re.search(r"\. [a-z]", caption), (path.name, caption)


def test_pictures_hold_the_text_that_stands_for_them() -> None:
    (picture, *_) = report_pictures(example.hostile(example.two_phases()))
    files = files_of_pictures([picture], ["png", "svg", "pdf"], "t")
    by_ending = {name.rpartition(".")[2]: data for name, data in files.items()}
    assert b"Bars: nominal 1.33" in by_ending["svg"] and b"<script" not in by_ending["svg"]
    assert b"Description" in by_ending["png"] and b"/Subject" in by_ending["pdf"]


ARTICLE = r"""\documentclass[%s]{article}
\usepackage{booktabs,siunitx,graphicx,array}
\begin{document}
%s
\end{document}
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of two studies, a run and a sweep each, with one prefix for both."""
    folder = tmp_path_factory.mktemp("studies")
    for name, font in (("a", "sans"), ("b", "serif")):
        look = {"label_prefix": name, "font": font}
        write_report(example.two_phases(), folder / name, formats=("tex", "pdf"), **look)
        write_pareto(sweep(), folder / f"{name}s", formats=("tex", "pdf"), **look)
    return folder


@pytest.mark.parametrize("style", ["twocolumn", "onecolumn"])
def test_two_studies_in_one_article_compile_without_a_warning(style: str, studies: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    every = sorted(p for p in studies.glob("*/*.tex") if p.name.startswith(("table-", "figure-")))
    assert len(every) > 20
    lines = (rf"\input{{{path.parent.name}/{path.stem}}}\clearpage" for path in every)
    (studies / f"{style}.tex").write_text(ARTICLE % (style, "\n".join(lines)))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{style}.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=studies, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    log = (studies / f"{style}.log").read_text(errors="replace")
    assert not re.findall(r".*(?:Warning|Overfull|drawn).*", log)
    assert b"/Type3" not in (studies / f"{style}.pdf").read_bytes()


def test_printing_is_that_of_a_column_unless_it_is_said() -> None:
    assert Printing().inches * 25.4 == pytest.approx(84)
