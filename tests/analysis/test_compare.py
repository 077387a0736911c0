"""Comparisons: which runs are found, what a row holds, files, and subjects that fail."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from matplotlib.figure import Figure

from prunescope.analysis.compare_runs import compare
from prunescope.analysis.inputs.options import CompareRequest, Options
from prunescope.analysis.named_runs import find_runs
from prunescope.analysis.report.comparison import (
    COMPARISON_FORMATS,
    comparison_table,
    render_csv,
    render_html,
    render_latex,
    render_markdown,
    write_comparison,
)
from prunescope.analysis.report.comparison_figure import comparison_pictures
from prunescope.analysis.report.figure_style import plotting
from prunescope.analysis.report.phase_tables import sides_table
from prunescope.analysis.schema.comparison import Comparison, ComparisonRow
from prunescope.analysis.schema.report import Ladder
from prunescope.deliver import Delivery, deliver_all
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report.example import HOSTILE
from tests.analysis.run_folder import write_pair
from tests.chrome import chrome, k, module, op, save, step

BF16 = "c10::BFloat16"


def trace(width: int) -> dict[str, Any]:
    wide = op("aten::mm", [512, 256], [256, width], dtype=BF16, kernels=[k(us=width / 16)])
    body = module("model.layers.0.mlp.up_proj", wide)
    return chrome(step(0, body), step(1, body))


def make(folder: Path, sparsity: float, *, method: str = "static-nk-mlp", batch: int = 1) -> Path:
    width = round(704 * (1 - sparsity))
    fields = {"batch": batch, "kv_bytes": 1000, "peak_memory_bytes": 5000}
    return write_pair(
        folder, trace(704), trace(width),
        dense_run={"phase_fields": {**fields, "samples_ns": [60_000, 61_000, 62_000]},
                   "weight_bytes": 4000},
        pruned_run={"phase_fields": {**fields, "samples_ns": [40_000, 41_000, 42_000]},
                    "weight_bytes": 3000,
                    "pruning": {"method": method, "sparsity": sparsity, "knobs": {}}},
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "runs" / "a", 0.25)
    make(tmp_path / "runs" / "deep" / "b", 0.5)
    make(tmp_path / "runs" / "c", 0.5, batch=8)
    (tmp_path / "runs" / "report").mkdir()
    return tmp_path / "runs"


def test_runs_of_a_folder_are_found_once_and_named_shortly(runs: Path) -> None:
    assert [f.name for f in find_runs([runs])] == ["a", "c", "b"]
    twice = find_runs([runs / "a", runs / "a" / "pruned", runs, runs / "deep" / "b"])
    assert [f.name for f in twice] == ["a", "c", "b"]
    make(runs / "deep" / "a", 0.5)
    assert [f.name for f in find_runs([runs])] == ["runs/a", "runs/c", "deep/a", "deep/b"]


def test_a_link_out_of_the_folder_is_not_followed(runs: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", 0.5)
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    assert [f.name for f in find_runs([runs])] == ["a", "c", "b"]


def test_a_row_holds_what_the_report_holds(runs: Path) -> None:
    done = compare([runs])
    assert [(r.run, r.sparsity["nominal"], r.batch) for r in done.rows] == [
        ("a", 0.25, 1), ("b", 0.5, 1), ("c", 0.5, 8),
    ]  # fmt: skip
    row, report = done.rows[0], done.reports["a"].phases["prefill"]
    assert (row.wall_ns, row.dense_wall_ns, row.timed) == (41_000, 61_000, "unprofiled")
    assert (row.weight_bytes, row.dense_weight_bytes) == (3000, 4000)
    assert (row.kv_bytes, row.peak_memory_bytes) == (1000, 5000)
    assert row.ladder == report.ladder
    assert row.ledger is not None and report.ledger is not None
    assert row.ledger == {r.row: r.ns for r in report.ledger}
    assert sum(v for k_, v in row.ledger.items() if k_ not in ("dense", "pruned")) == pytest.approx(
        row.ledger["pruned"]
    )


def test_one_baseline_for_bare_traces(tmp_path: Path) -> None:
    dense = save(trace(704), tmp_path / "d.json")
    subjects = [save(trace(n), tmp_path / f"p{n}.json") for n in (528, 352)]
    done = compare(subjects, baseline=dense, options=Options(device="h100-sxm"))
    assert [r.run for r in done.rows] == ["p528.json", "p352.json"] or [
        r.run for r in done.rows
    ] == ["p352.json", "p528.json"]
    assert done.baseline is not None and done.baseline["name"] == "d.json"
    assert all(r.timed == "profiled" and r.batch is None for r in done.rows)
    speedups = {r.run: r.ladder.realised for r in done.rows if r.ladder}
    assert speedups["p352.json"] > speedups["p528.json"] > 1


def test_a_subject_that_fails_has_no_row_and_is_named(runs: Path) -> None:
    (runs / "c" / "pruned" / "prefill.trace.json.gz").unlink()
    done = compare([runs])
    assert [r.run for r in done.rows] == ["a", "b"]
    assert [f.run for f in done.failed] == ["c"]
    assert "lacks the trace" in done.failed[0].why
    assert "c has no row: pruned/ lacks the trace" in render_markdown(done)
    with pytest.raises(PrunescopeError, match="lacks the trace"):
        compare([runs / "c"])


def test_every_format_is_written_and_agrees(runs: Path, tmp_path: Path) -> None:
    done = compare([runs])
    paths = write_comparison(done, tmp_path / "o", formats=COMPARISON_FORMATS)
    names = {f"comparison.{f}" for f in COMPARISON_FORMATS}
    names |= {f"comparison-ledger.{f}" for f in ("png", "pdf", "svg")}
    names |= {"figure-comparison.tex", "figure-comparison-ledger.tex"}
    assert {p.name for p in paths} == names
    lines = list(csv.DictReader(io.StringIO((tmp_path / "o" / "comparison.csv").read_text())))
    plain = json.loads((tmp_path / "o" / "comparison.json").read_bytes())
    assert [float(x["speedup_realised"]) for x in lines] == [
        r["ladder"]["realised"] for r in plain["rows"]
    ]
    assert lines[0]["wall_ns"] == "41000.0" and lines[2]["batch"] == "8"
    assert set(plain["reports"]) == {"a", "b", "c"}
    pdf = (tmp_path / "o" / "comparison.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    with pytest.raises(PrunescopeError, match="unknown format 'parquet'"):
        write_comparison(done, tmp_path / "o2", formats=("parquet",))


def test_the_command_compares_several_and_writes_into_the_one_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deliver_all(CompareRequest(runs), Delivery(formats="csv")) is False
    assert (runs / "comparison" / "comparison.csv").is_file()
    assert "realised" in capsys.readouterr().out
    two = CompareRequest([runs / "a", runs / "c"])
    assert deliver_all(two, Delivery(json=str(tmp_path / "x.json"))) is False
    assert [r["run"] for r in json.loads((tmp_path / "x.json").read_bytes())["rows"]] == ["a", "c"]
    with pytest.raises(PrunescopeError, match="add --out FOLDER"):
        deliver_all(two, Delivery(formats="md"))
    with pytest.raises(PrunescopeError, match="several were given"):
        deliver_all(replace(two, eager_trace="e.json"), Delivery())


def test_one_subject_gives_its_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deliver_all(CompareRequest(runs / "a"), Delivery(formats="json")) is False
    assert (runs / "a" / "report" / "report.json").is_file()
    assert "ledger" in capsys.readouterr().out.lower()


def rows(count: int, name: str = "method") -> list[ComparisonRow]:
    ledger = {"dense": 100.0, "promised": 50.0, "coverage": 20.0, "roofline_shift": 5.0,
              "shape": -3.0, "kernel_efficiency": 10.0, "added_work": 4.0, "launch_idle": -6.0,
              "pruned": 80.0}  # fmt: skip
    ladder = Ladder(nominal=2.0, flop=1.9, coverage=1.5, roofline=1.4, busy=1.3, realised=1.25,
                    realised_ci95=[1.2, 1.3], share_of_bound=0.9)  # fmt: skip
    blank = dict.fromkeys(
        ("model", "family", "context", "dense_wall_ns", "tokens_per_s", "dense_tokens_per_s",
         "weight_bytes", "dense_weight_bytes", "kv_bytes", "dense_kv_bytes", "peak_memory_bytes",
         "dense_peak_memory_bytes", "wall_ci95")
    )  # fmt: skip
    return [
        ComparisonRow(run=f"{name} run {i}", method=f"{name}-{i % 5}", phase="decode",
                      batch=2 ** (i % 4), prompt_len=512, sparsity={"nominal": 0.1 + i / 60},
                      timed="profiled", wall_ns=1.0, ladder=ladder, ledger=ledger, **blank)
        for i in range(count)
    ]  # fmt: skip


def figures_of(some: list[ComparisonRow]) -> list[Figure]:
    """The figures of rows, drawn at the resolution of print."""
    drawn = []
    for picture in comparison_pictures(Comparison(tool="t", baseline=None, rows=some)):
        with plotting():
            figure = picture.plot()
        assert figure is not None
        figure.set_dpi(300)
        figure.draw_without_rendering()
        drawn.append(figure)
    return drawn


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("name", ["method", HOSTILE, "a-very-long-method-name-of-somebody " * 3])
def test_no_text_of_the_figures_overlaps_or_leaves_the_page(count: int, name: str) -> None:
    for figure in figures_of(rows(count, name)):
        texts: list[Any] = list(figure.legends[0].get_texts())
        for axes in figure.axes:
            low, high = sorted(axes.get_xlim())
            ticks = [t for t, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
                     if low <= x <= high]  # fmt: skip
            bottom, top = sorted(axes.get_ylim())
            ticks += [t for t, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
                      if bottom <= y <= top]  # fmt: skip
            texts += [*ticks, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        boxes = [t.get_window_extent() for t in texts if t.get_text()]
        for a, b in combinations([box.expanded(1, 0.75) for box in boxes], 2):
            assert not a.overlaps(b)
        page = figure.bbox
        assert all(b.x0 >= page.x0 - 1 and b.x1 <= page.x1 + 1 for b in boxes)
        assert all(b.y0 >= page.y0 - 1 and b.y1 <= page.y1 + 1 for b in boxes)
        assert figure.get_figheight() < 9


@pytest.mark.parametrize("doubted", [True, False])
def test_what_is_no_evidence_is_drawn_open(*, doubted: bool) -> None:
    some = rows(2)
    some[0].critical = ["timing-not-valid"] if doubted else ["no-speedup"]
    curves, bars = figures_of(some)
    for figure in (curves, bars):
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        marks = [line for line in lines if line.get_marker() not in ("None", "_")]
        assert any(line.get_markerfacecolor() == "white" for line in marks) == doubted
    assert ("open: timing not valid" in legend_of(curves)) == doubted
    ground = [one.get_hatch() for one in bars.axes[0].patches if one.get_zorder() < 0]
    assert ground == (["xxxx"] if doubted else [])
    assert ("timing not valid" in legend_of(bars)) == doubted


def test_every_run_and_every_reason_of_the_figures_is_named() -> None:
    """Bars stand in groups of one setting; a run without a point, and all reasons, are named."""
    some = rows(3, "run")
    some[0].comparable, some[0].critical, some[0].sparsity = False, ["timing-not-valid"], {}
    some[1].critical = ["timing-not-valid"]
    some[2].critical, some[2].token_ids = ["timing-not-valid"], "random token ids"
    curves, bars = figures_of(some)
    labels = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert labels == ["run-0", "run-1 0.116667", "run-2 0.133333"]
    headings = [text.get_text() for text in bars.axes[0].texts]
    assert headings == [f"decode, batch {batch}, 512 tokens" for batch in (1, 2, 4)]
    first = next(iter(comparison_pictures(Comparison(tool="t", baseline=None, rows=some))))
    assert "1 of unknown sparsity without a point" in first.caption
    assert "open: timing not valid, random token ids" in legend_of(curves)
    said = legend_of(bars)
    assert "sides not comparable, timing not valid" in said
    assert "timing not valid, some random token ids" in said


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    some = rows(1) * 2
    some[1] = msgspec.structs.replace(some[1], run="other")
    _, bars = figures_of(some)
    labels = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert labels == ["method-0 0.1, method run 0", "method-0 0.1, other"]


def test_more_than_eight_methods_are_small_multiples() -> None:
    """Twelve methods of one setting: eight in the first panel, four in the second.

    Their ids have no character that an SVG would have to escape.
    """
    some = [
        msgspec.structs.replace(row, method=f"own-{i}.py:prune", batch=1)
        for i, row in enumerate(rows(12))
    ]
    curves, _ = figures_of(some)
    lines = [
        {line.get_gid() for line in axes.lines if str(line.get_gid()).startswith("family-")}
        for axes in curves.axes
    ]
    assert [len(names) for names in lines] == [8, 4]


def test_one_wide_interval_is_clipped_with_an_arrow() -> None:
    """1.25 [1.2, 30]: the axis ends near 1.4 times the largest mark, and an arrow stands there."""
    some = rows(2)
    assert some[0].ladder is not None
    wide = msgspec.structs.replace(some[0].ladder, realised_ci95=[1.2, 30.0])
    some[0] = msgspec.structs.replace(some[0], ladder=wide)
    (axes, *_) = figures_of(some)[0].axes
    top = axes.get_ylim()[1]
    assert top < 3
    arrows = [line for line in axes.lines if str(line.get_gid()).startswith("clipped")]
    assert [line.get_ydata()[0] for line in arrows] == [top]


def test_gains_below_zero_are_in_the_panel() -> None:
    some = rows(1)
    assert some[0].ledger is not None
    some[0].ledger |= {"promised": 10.0, "shape": -30.0}
    _, bars = figures_of(some)
    assert bars.axes[0].get_xlim()[0] <= -26  # 10 less 30 and 6


def test_at_one_sparsity_the_promise_is_seen_too() -> None:
    axes = figures_of(rows(1))[0].axes[0]
    promised = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
    at = promised.get_xdata()
    assert min(at) < 0.1 < max(at) and list(axes.get_xticks()) == [0.1]


def test_nothing_to_draw_is_no_figure() -> None:
    bare = rows(1)
    bare[0].ladder = None
    assert figures_of(bare) == []


def test_hostile_names_are_inert_in_every_format() -> None:
    done = Comparison(tool="t", baseline=None, rows=rows(2, HOSTILE), warnings=[HOSTILE])
    page = render_html(done)
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert "\\input{x}" not in render_latex(done)
    table = render_csv(done)
    cells = [cell for line in csv.reader(io.StringIO(table)) for cell in line]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    for text in (page, render_latex(done), table, render_markdown(done)):
        assert "\x1b" not in text


def test_unknown_is_a_dash_and_never_zero() -> None:
    done = Comparison(tool="t", baseline=None, rows=rows(1))
    table = comparison_table(done)
    texts = {c.title: cell.text for c, cell in zip(table.columns, table.rows[0], strict=True)}
    assert texts["weights"] == "–" and texts["tokens/s"] == "–" and texts["context"] == "–"
    assert texts["coverage"] == "+20.0 %" and texts["launch and idle"] == "−6.0 %"
    assert texts["TTFT or TPOT"].endswith(" p")


def test_what_decodes_nothing_has_items_and_no_prompt_and_no_cache(tmp_path: Path) -> None:
    """Images (one row an item), and an encoder of 32 tokens: alone, and beside a language model."""
    for name, tokens in (("vit", 1), ("bert", 32)):
        fields = {"batch": 4, "cache": "none", "prompt_len": tokens, "context": tokens,
                  "tokens_per_step": 4 * tokens, "kv_bytes": None}  # fmt: skip
        sides = [{"phase_fields": {**fields, "samples_ns": [us * 1000] * 3}} for us in (60, 40)]
        write_pair(tmp_path / name, trace(704), trace(352), dense_run=sides[0], pruned_run=sides[1],
                   phase="forward")  # fmt: skip
    make(tmp_path / "llm", 0.5)
    images, tokens = (compare([tmp_path / name]) for name in ("vit", "bert"))
    assert images.rows[0].items_per_s == pytest.approx(4e9 / 40_000)
    of_text = re.compile(r"prompt|context|TTFT|TPOT|KV cache|kv_bytes|token[s_]")
    for render in (render_markdown, render_html, render_latex, render_csv):
        assert not of_text.search(
            re.sub(r"<style>.*</style>|token_ids", "", render(images), flags=re.S)
        )
        shown = render(tokens)
        assert any(words in shown for words in ("item_tokens", "tokens of an item", "32 tokens"))
        assert not re.search(r"prompt_len|>prompt<|TTFT|KV cache|kv_bytes", shown)
    both = comparison_table(compare([tmp_path / "vit", tmp_path / "llm"]))
    titles = [column.title for column in both.columns]
    assert {"prompt", "items/s", "tokens/s", "KV cache", "TTFT, TPOT or step"} <= set(titles)
    cells = {row[0].text: dict(zip(titles, row, strict=True)) for row in both.rows}
    assert cells["vit"]["prompt"].text == "–" and cells["llm"]["items/s"].text == "–"
    assert "a step is one forward pass" in " ".join(both.notes)
    report = images.reports["vit"].phases["forward"]
    assert report.pass_kind == "forward"
    sides_of = sides_table(report)
    assert sides_of is not None and sides_of.notes == ["a step is a forward pass"]


def test_the_page_loads_nothing() -> None:
    page = render_html(Comparison(tool="t", baseline=None, rows=rows(3)))
    assert "<svg" in page and "default-src 'none'" in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)


@pytest.mark.slow
def test_the_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (Debian: texlive-latex-extra, texlive-science)")
    done = Comparison(tool="t", baseline=None, rows=[*rows(3), *rows(2, HOSTILE)])
    write_comparison(done, tmp_path, formats=("tex", "pdf"))
    packages = r"\usepackage{booktabs,siunitx,graphicx,array,amsmath,textcomp}"
    body = r"\begin{document}\input{comparison}\end{document}"
    page = rf"\documentclass{{article}}{packages}{body}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout.decode("utf-8", "replace")[-2000:]
