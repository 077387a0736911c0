"""The main table of a paper: what is bold, what shares a letter, what stands apart, what fits."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.frontier.best import best_points
from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.pareto.write import write_pareto
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.printing import Printing, printed_as
from prunescope.analysis.report.results_latex import results_files, results_latex
from prunescope.analysis.report.results_table import ResultsTable, result_tables, results_csv
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example
from tests.analysis.results_pareto import result, study


def table(pareto: Pareto | None = None) -> ResultsTable:
    return result_tables(pareto or study())[0]


def line(text: str, *starts: str) -> str:
    """The row of a LaTeX table that begins with these cells, below the heading of its block."""
    for start in starts[:-1]:
        text = text[text.index(start) :]
    return next(row for row in text.splitlines() if row.startswith(starts[-1]))


def test_the_best_is_bold_beyond_noise_alone() -> None:
    """1.40 ± 2 % is beyond 1.30 ± 2 %; 1.31 is not, and shares a letter with it."""
    text = results_latex(table(), "tab:results")
    ours = line(text, "batch 1, 64 tokens", "Ours & 0.25")
    assert ours.startswith(r"Ours & 0.25 & \bfseries 1.400 & [1.372, 1.428]")
    assert line(text, "batch 1, 64 tokens", "static-nk & 0.25").count("bfseries") == 0
    for name in ("static-nk", "Ours"):
        row = line(text, "batch 4, 64 tokens", f"{name} & 0.25")
        assert row.split(" & ")[3].endswith(r"]\textsuperscript{a}")
    # 13 and 12 of perplexity are 3 % apart, their intervals 0.1: bold at either batch.
    assert r"\bfseries 12.00 & [11.90, 12.10]" in line(text, "batch 4", "Ours & 0.25")
    assert r"\bfseries 14.0" in line(text, "batch 1", "Ours & 0.5")
    assert "sisetup" in text and r"\toprule" in text and "S[table-format=1.3" in text


def test_a_time_that_is_no_evidence_stands_apart() -> None:
    """Next to a valid phase its cell says so; where no phase is valid, the row is below all."""
    row = line(results_latex(table(), "l"), "batch 4", "Ours & 0.25")
    assert row.split(" & ")[4] == "{not valid}"
    invalid = study()
    for phase in invalid.phases.values():
        for point in phase.points:
            point.timing_valid = point.batch == 1
    text = results_latex(table(recompute(invalid)), "l")
    apart = text[text.index("timing not valid, no evidence") :]
    assert apart.count("static-nk") == 2 and "bfseries 1." not in apart
    assert "[1.274, 1.326]" in apart
    kept = text[text.index(r"\midrule") : text.index("timing not valid, no evidence")]
    assert kept.count("static-nk") == 2


def test_no_loss_on_random_ids_is_the_best() -> None:
    random = study()
    random.subject.text = {"source": "random token ids"}
    text = results_latex(table(recompute(random)), "l")
    assert r"\bfseries 1.400" in text and r"\bfseries 12.00" not in text
    assert "no loss means anything" in text


def test_points_compete_at_equal_sparsity_or_else_in_the_cell() -> None:
    def best(*points: SweepPoint) -> dict[str, list[str]]:
        return {b.measure: b.ids for b in best_points(points) if b.beyond_noise}

    quarter, half = result("a", 1.3, 0.3, 1, "prefill"), result("b", 1.9, 0.6, 1, "prefill",
                                                                sparsity=0.5)  # fmt: skip
    assert best(quarter, half) == {"speedup": [half.id], "perplexity": [quarter.id]}
    rival = result("c", 1.2, 0.9, 1, "prefill", sparsity=0.5)
    assert best(quarter, half, rival) == {"speedup": [half.id], "perplexity": [half.id]}
    assert best(quarter) == {}


def test_no_evidence_is_no_rival() -> None:
    """A disturbed time, a point without an interval, and one that removed nothing are left out."""
    fast = {"realised_ci95": None}, {"timing_valid": False}
    fast += ({"flop_sparsity": 0.0, "parameter_sparsity": 0.0},)  # type: ignore[assignment]
    points = [result("a", 1.3, 0.3, 1, "prefill"), result("b", 1.2, 0.2, 1, "prefill")]
    for i, more in enumerate(fast):
        other = result(f"c{i}", 2.0, 0.25, 1, "prefill", **more)
        (speed,) = (b for b in best_points([*points, other]) if b.measure == "speedup")
        assert speed.ids == [points[0].id]


def test_markdown_csv_and_latex_hold_the_same_rows() -> None:
    with printed_as(Printing(label_prefix="a-")):
        files = results_files([table()], ["md", "csv", "tex"], "t")
    assert set(files) == {"table-results.md", "table-results.csv", "table-results.tex"}
    rows = list(csv.DictReader(io.StringIO(files["table-results.csv"].decode())))
    assert len(rows) == 2 * (1 + 4)  # two batches: dense and two methods at two sparsities
    (ours,) = (r for r in rows if (r["method"], r["batch"], r["s"]) == ("Ours", "1", "0.25"))
    assert (ours["family"], ours["prefill_speedup_mark"]) == ("mine:by_norm", "best")
    assert float(ours["perplexity"]) == pytest.approx(12.0)
    assert float(ours["prefill_memory"]) == 20_000_000
    (disturbed,) = (r for r in rows if (r["method"], r["batch"], r["s"]) == ("Ours", "4", "0.25"))
    assert (disturbed["decode_speedup_valid"], disturbed["prefill_speedup_mark"]) == ("no", "a")
    page = files["table-results.md"].decode()
    assert "| Ours | 0.25 | batch 1, 64 tokens | **1.400** |" in page
    assert "**1.400**" in render_pareto(study())
    assert rb"\label{tab:a-results}" in files["table-results.tex"]


def test_a_caption_has_the_whole_setting() -> None:
    text = results_latex(table(), "l")
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", text)
    for words in (
        "tiny-llama",
        "prefill and decode",
        "batch 1 and 4",
        "64 tokens",
        "fp32",
        "AMD EPYC, 2 threads",
        "8 new tokens",
        "n~=~12",
        "3 placements",
        "s = 0.25 and",
    ):
        assert words in caption  # fmt: skip
    assert text.count("beyond noise") == 1 and "a book, 4096 tokens" in text


def test_an_option_that_varies_has_a_table_of_its_own() -> None:
    """Rows are its values; the selection is an option, too. One value, or two options: no table."""
    pareto = study()
    for phase in pareto.phases.values():
        phase.points = [
            result("static-nk", speed, 0.3, 1, "prefill", set=[f"align={align}"],
                   id=f"align-{align}")
            for align, speed in (("1", 1.1), ("16", 1.5))
        ]  # fmt: skip
    whole, ablation = result_tables(recompute(pareto))
    assert ablation.id == "ablation-static-nk-align" and ablation.heads == ("align", "s")
    assert [row.method for row in ablation.rows] == ["dense", "1", "16"]
    assert [row.method for row in whole.rows][1:] == ["static-nk (align=1)", "static-nk (align=16)"]
    text = results_latex(ablation, "l")
    assert line(text, "16 & 0.25").startswith(r"16 & 0.25 & \bfseries 1.50")


def test_a_sweep_without_losses_has_a_table_of_speedups() -> None:
    pareto = study()
    for phase in pareto.phases.values():
        for point in phase.points:
            point.loss = None
    keys = [quantity.key for quantity in table(pareto).quantities]
    assert "perplexity" not in keys and "prefill_speedup" in keys


def test_hostile_names_stay_text() -> None:
    pareto = study()
    pareto.subject.model = example.HOSTILE
    for phase in pareto.phases.values():
        for point in phase.points:
            point.display_name = "=cmd|\\input{x}"
    text = results_latex(table(recompute(pareto)), "l")
    assert r"\input{x}" not in text and text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert results_csv(table(pareto)).splitlines()[2].startswith("\"'=cmd|")


def test_a_perplexity_nobody_would_use_has_a_power_of_ten() -> None:
    pareto = study()
    for phase in pareto.phases.values():
        loss = phase.points[0].loss
        assert loss is not None
        loss.perplexity, loss.perplexity_rel, loss.ci95 = 4.34e9, 4.34e8, [4e8, 5e8]
    assert r"{$ 4.3\times 10^{9} $} &" in results_latex(table(pareto), "l")


def test_the_files_are_written_with_the_others(tmp_path: Path) -> None:
    paths = write_pareto(study(), tmp_path / "p", formats=["tex", "csv", "md"], label_prefix="a")
    names = {path.name for path in paths}
    assert {"table-results.tex", "table-results.csv", "table-results.md"} <= names
    with pytest.raises(PrunescopeError, match="label-prefix"):
        write_pareto(study(), tmp_path / "q", formats=["tex"], label_prefix="a_b")


@pytest.mark.parametrize("style", [pytest.param("", marks=pytest.mark.slow), "twocolumn"])
def test_latex_compiles_without_a_warning(style: str, tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX has no siunitx")
    long = study()
    for phase in long.phases.values():
        for point in phase.points:
            point.display_name = f"{point.method}-with-a-long-name"
    tables = {"a": (None, study()), "b": ("column", study()), "c": ("page", study()),
              "d": ("column", long)}  # fmt: skip
    for prefix, (width, pareto) in tables.items():
        with printed_as(Printing(label_prefix=f"{prefix}-", word=width)):
            files = results_files([table(recompute(pareto))], ["tex"], "t")
        (tmp_path / f"{prefix}.tex").write_bytes(files["table-results.tex"])
    (tmp_path / "doc.tex").write_text(
        rf"\documentclass[{style}]{{article}}\usepackage{{booktabs,siunitx,graphicx,array}}"
        r"\begin{document}See \ref{tab:a-results}.\input{a}\input{b}\input{c}\input{d}"
        r"\end{document}"
    )
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape",
             "doc.tex"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "doc.log").read_text(errors="replace")
    assert [row for row in log.splitlines() if re.search("Warning|Overfull", row)] == []


def test_the_table_is_that_of_a_stored_comparison() -> None:
    """The marks are values of pareto.json: a report computes nothing."""
    stored = msgspec.json.decode(msgspec.json.encode(study()), type=Pareto)
    assert results_latex(table(stored), "l") == results_latex(table(), "l")
