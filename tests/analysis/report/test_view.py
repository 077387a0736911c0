"""Tables of a phase: cells, notes that fit, both sides, overhead of a dynamic family."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

import prunescope
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import gemm_table, ledger_view, view
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.phase_tables import overhead_table, sides_table
from prunescope.analysis.report.sheet import kept_columns, shown_notes
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import (
    Overhead,
    OverheadPart,
    Phase,
    Report,
    Row,
    from_json,
    to_json,
)
from prunescope.analysis.summary.gemm_rows import merge_removals, merge_rows
from tests.analysis.decoder import Layer, decoder
from tests.analysis.finding_cases import BF16
from tests.analysis.report import example
from tests.chrome import chrome, k, op, save, step
from tests.stored import report_of

ROOT = Path(__file__).resolve().parents[3]


def golden(name: str) -> list[Phase]:
    return list(report_of(name).phases.values())


def column(table: view.Table, title: str) -> list[str]:
    at = [c.title for c in table.columns].index(title)
    return [row[at].text for row in table.rows]


def test_layers_that_are_gone_and_those_that_stay_are_one_row() -> None:
    for phase in golden("tiny-static-m"):
        table = gemm_table.gemm_table(phase)
        roles = column(table, "role")
        assert len(set(roles)) == len(roles)
        rows = dict(zip(roles, zip(column(table, "axis"), column(table, "kept"),
                                   column(table, "count"), strict=True), strict=True))  # fmt: skip
        assert rows["q"] == rows["down"] == ("gone", "50 %", "8→4")
        assert rows["lm_head"] == ("none", "–", "1")


def test_a_merged_row_sums_what_its_two_rows_lose() -> None:
    (phase, _) = golden("tiny-static-m")
    for gemm in merge_removals(phase.gemms):
        parts = [g for g in phase.gemms if (g.role, g.group) == (gemm.role, gemm.group)]
        for name in ("loss_ns", "promised_ns", "dense_busy_ns", "dense_count", "busy_ns"):
            told = [getattr(g, name) for g in parts]
            assert getattr(gemm, name) == pytest.approx(sum(told))
        assert gemm.loss_ns == pytest.approx(gemm.busy_ns - (gemm.promised_ns or 0))


def test_layers_of_other_widths_are_one_row_with_a_range(tmp_path: Path) -> None:
    """Channels 512, 384, 256, 320 of 512 and 16, 8, 8, 12 of 16 heads."""
    widths = [(512, 16), (384, 8), (256, 8), (320, 12)]
    dense, pruned = (
        save(decoder([Layer(h=256, heads=n, kv_heads=4, f=f) for f, n in sizes]), tmp_path / name)
        for name, sizes in (("d.json", [(512, 16)] * 4), ("p.json", widths))
    )
    phase = analyze(pruned, baseline=dense).report.phases["trace"]
    table = gemm_table.gemm_table(phase)
    names = ("role", "axis", "kept", "batch", "N", "K", "count")
    rows = {row[0]: row[1:] for row in zip(*(column(table, n) for n in names), strict=True)}
    assert len(rows) == len(table.rows)
    assert rows["up"] == ("N", "50–100 %", "1", "512→256–512", "256", "4")
    assert rows["down"] == ("K", "50–100 %", "1", "256", "512→256–512", "4")
    assert rows["attention qk†"] == ("heads", "50–100 %", "16→8–16", "32", "16", "4")
    assert rows["v"] == ("none", "–", "1", "64", "256", "4")
    ups = [g for g in phase.gemms if g.role == "up"]
    (shown,) = (merged.gemm for merged in merge_rows(phase.gemms) if merged.gemm.role == "up")
    for name in ("loss_ns", "promised_ns", "dense_busy_ns", "dense_count", "busy_ns", "ideal_ns"):
        assert getattr(shown, name) == pytest.approx(sum(getattr(g, name) for g in ups))
    assert shown.layers == [0, 1, 2, 3]
    assert phase.family is not None
    assert "down K 512 → 256 to 384, by layer" in " ".join(phase.family.evidence)


def test_heads_that_are_gone_are_an_arrow_in_the_batch() -> None:
    for phase in golden("tiny-static-nk"):
        table = gemm_table.gemm_table(phase)
        cells = dict(zip(column(table, "role"), column(table, "batch"), strict=True))
        assert cells["attention qk†"] == cells["attention pv†"] == "8→4"
        assert cells["q"] == "1"


@pytest.mark.parametrize("top", [None, 1])
def test_what_ran_hidden_says_how_long(top: int | None, tmp_path: Path) -> None:
    """A GEMM of 12 us runs wholly under 20 us of communication, and one of 5 us beside nothing."""
    shapes = ([64, 64], [64, 64])
    trace = chrome(
        step(
            0,
            op("nccl:all_reduce", kernels=[k(us=20, name="ncclDevKernel_AllReduce", stream=20)]),
            op("aten::mm", *shapes, kernels=[k(us=12, name="hidden_gemm", gap_us=-16)]),
            op("aten::mm", [64, 32], [32, 64], kernels=[k(us=5, name="seen_gemm", gap_us=4)]),
        )
    )
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    gemms = gemm_table.gemm_table(phase, top=top)
    kernels = gemm_table.kernel_table(phase.kernels, phase.busy_ns, top=2 if top else None)
    if top is None:
        assert column(gemms, "time") == ["5.00", "0.00 (ran 12.00)"]
        assert "0.0 (ran 12.0)" in column(kernels, "time")
        assert "(ran …): hidden under other kernels, none of it counts" in kernels.notes
    else:
        said = "; 1 of them ran 12.00 µs hidden under other kernels"
        assert gemms.notes[0] == f"1 smaller row, together 0.00 µs, not shown{said}"
        assert kernels.notes == [
            "smaller rows are not shown; 1 of them ran 12.0 µs hidden under other kernels"
        ]


def test_a_noise_that_is_0_by_definition_is_not_shown() -> None:
    phase = example.two_phases().phases["prefill"]
    assert phase.ledger is not None
    phase.ledger[2].noise_ns = phase.ledger[5].noise_ns = 0.0  # coverage, kernel efficiency
    table = ledger_view.ledger_table(phase)
    assert table is not None
    noise = dict(zip(column(table, "row"), column(table, "noise"), strict=True))
    assert (noise["coverage"], noise["kernel efficiency"]) == ("", "±0.00")
    assert "noise is not shown where it is 0 by definition (dense against dense)" in table.notes
    rows = [Row(row="coverage", ns=1.0, noise_ns=1.0)]
    assert not [n for n in ledger_view.ledger_notes(rows) if "definition" in n]


def test_what_papers_print_beside_a_speedup() -> None:
    report = report_of("tiny-static-nk")
    for phase in report.phases.values():
        table = sides_table(phase)
        assert table is not None and phase.ladder is not None
        share = dict(zip(column(table, "per step"), [row[3].value for row in table.rows],
                         strict=True))  # fmt: skip
        assert list(share) == ["time of a step, unprofiled", "tokens/s", "weights", "KV cache",
                               "peak memory"]  # fmt: skip
        assert share["time of a step, unprofiled"] == pytest.approx(1 / phase.ladder.realised)
        assert share["tokens/s"] == pytest.approx(phase.ladder.realised)
        assert share["KV cache"] == 0.5
    back = from_json(to_json(report)).phases["decode"]
    assert sides_table(back) == sides_table(report.phases["decode"])
    assert "<summary>Dense and pruned</summary>" in render_markdown(report)
    assert "Dense and pruned: tiny-llama pruned by static-nk; s = 0.5, decode" in render_latex(
        report
    )
    assert sides_table(example.alone().phases["trace"]) is None


def test_a_row_of_nothing_names_no_part() -> None:
    """2 ns of 4.5 ms read 0.0 %: what they are mostly of says nothing."""
    phase = example.phase()
    rows = {row.row: row for row in phase.ledger or []}
    one = rows["roofline_shift"]
    assert one.ns is not None and one.parts and rows["dense"].ns is not None
    at = list(rows).index("roofline_shift")
    for share, shown in ((0.0004, False), (0.0006, True)):
        one.ns, one.noise_ns, one.ci95 = share * rows["dense"].ns, None, None
        table = ledger_view.ledger_table(phase)
        assert table is not None and bool(table.rows[at][-1].text) == shown


def test_a_row_without_evidence_names_no_cause() -> None:
    """Its noise is as large as itself: what moved it most may be chance."""
    phase = example.phase()
    at = next(i for i, row in enumerate(phase.ledger or []) if row.row == "roofline_shift")
    one = (phase.ledger or [])[at]
    for noise, named in ((0.0, True), (one.ns, False)):
        one.noise_ns = noise
        table = ledger_view.ledger_table(phase)
        assert table is not None and bool(table.rows[at][-1].text) is named


def test_a_kernel_above_its_bound_has_the_mark_of_a_gemm_above_it() -> None:
    (phase,) = example.alone().phases.values()
    kernels = [msgspec.structs.replace(phase.kernels[0], efficiency=1.403)]
    table = gemm_table.kernel_table(kernels, phase.busy_ns)
    assert table.rows[0][-1].text == "140.3 %!"
    assert any(note.startswith("! ≥ 100 %") for note in table.notes)
    below = gemm_table.kernel_table(phase.kernels, phase.busy_ns)
    assert not any(note.startswith("!") for note in below.notes)


def table() -> Table:
    columns = [Column("role"), Column("efficiency", numeric=True, drop=8)]
    rows = [[Cell("gate" * 4), Cell("104.1 %!", 1.041)]]
    return Table(
        "t", "T", columns, rows, ["! of the bound", "always"], {"! of the bound": ("efficiency",)}
    )


@pytest.mark.parametrize(("width", "notes"), [(80, 2), (20, 1)])
def test_a_mark_that_is_not_shown_is_not_explained(width: int, notes: int) -> None:
    assert len(kept_columns(table(), width)) == notes
    assert shown_notes(table(), width) == table().notes[-notes:]


def trained(tmp_path: Path, name: str, n: int) -> Path:
    mm = op("aten::mm", [8, 32], [32, n], dtype=BF16, us=10)
    back = op("aten::mm", [32, 8], [8, n], dtype=BF16, us=10)
    node = op("autograd::engine::evaluate_function: MmBackward0", inner=[back], us=1)
    trace = chrome(step(0, mm, node), cpu=True)
    return save(trace, tmp_path / name)


def test_a_step_of_training_is_no_token(tmp_path: Path) -> None:
    report: Any = prunescope.analyze(
        trained(tmp_path, "p.json", 32), baseline=trained(tmp_path, "d.json", 64)
    )
    phase = report.phases["trace"]
    assert phase.phase_kind is not None and phase.phase_kind["kind"] == "training"
    sides = sides_table(phase)
    assert sides is not None and sides.notes[0].startswith("a step is one of training")
    said = next(one for one in report.warnings if one.startswith("peaks of"))
    assert "`prunescope calibrate`" in said and "--device" not in said


MS = 1e6


def overhead(**more: object) -> Overhead:
    parts = [
        OverheadPart(name="router", ns=1.4 * MS, share=0.01, added=True,
                     evidence=["aten::mm in router: 1.400 ms in 16"]),
        OverheadPart(name="estimator", ns=0.0, share=0.0, added=True),
        OverheadPart(name="weights read all the same", ns=None, added=False),
    ]  # fmt: skip
    plain: dict[str, object] = {
        "parts": parts, "added_ns": 1.4 * MS, "saved_ns": 20.4 * MS, "sparsity": 0.5,
        "break_even": 0.104, "break_even_ci95": [0.05, None],
    }  # fmt: skip
    return msgspec.convert({**plain, **more}, Overhead)


def phase(**more: object) -> Phase:
    return msgspec.structs.replace(example.phase(), overhead=overhead(**more))


def one(**more: object) -> Report:
    return msgspec.structs.replace(example.two_phases(), phases={"prefill": phase(**more)})


def printed(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(report, console, full=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_a_part_and_a_total() -> None:
    table = overhead_table(phase())
    assert table is not None
    assert table.title == "Overhead of static-nk"
    assert [[c.text for c in row[:4]] for row in table.rows] == [
        ["router", "1.400", "1.0 %", "added"],
        ["estimator", "0.000", "0.0 %", "added"],
        ["weights read all the same", "–", "–", "not saved"],  # unknown is no zero
        ["total added", "1.400", "1.0 %", "added"],
    ]
    assert "where 10.4 % (5.0 % at least, and it may never pay) of the FLOPs" in table.notes[0]
    assert "here 50.0 % are removed" in table.notes[0]


def test_of_an_unknown_family_the_overhead_is_of_what_decides() -> None:
    plain = phase()
    assert plain.family is not None
    unknown = msgspec.structs.replace(plain.family, id="unknown")
    table = overhead_table(msgspec.structs.replace(plain, family=unknown))
    assert table is not None and table.title == "Overhead of what decides at run time"


@pytest.mark.parametrize(
    ("at", "ci95", "says"),
    [(0.0, [0.0, None], "break-even is not known: "), (0.3, [None, None], "is not known: "),
     (0.0, [0.0, 0.0], "from the first FLOPs that go; here 50.0 %"),
     (0.1, [0.08, 0.13], "where 10.0 % [8.0 %, 13.0 %] of")],
)  # fmt: skip
def test_an_interval_that_says_nothing_is_a_sentence(
    at: float, ci95: list[float | None], says: str
) -> None:
    table = overhead_table(phase(break_even=at, break_even_ci95=ci95))
    assert table is not None
    assert says in table.notes[0]
    assert " 0.0 % [" not in table.notes[0] and "never]" not in table.notes[0]


def test_no_break_even_says_why() -> None:
    table = overhead_table(phase(break_even=None, break_even_ci95=None, why="it is too slow"))
    assert table is not None
    assert table.notes == ["no break-even: it is too slow"]


def test_every_format_shows_it_and_only_where_there_is_one() -> None:
    for render in (render_markdown, render_html, render_latex):
        assert "Overhead of static-nk" in render(one())
        assert "Overhead of" not in render(example.two_phases())
    assert from_json(to_json(one())) == one()
    told = json.loads(to_json(example.two_phases()))
    assert told["phases"]["prefill"]["overhead"] is None


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_shows_what_was_seen(width: int) -> None:
    text = printed(one(), width)
    section = text.partition("Overhead of static-nk")[2].partition("GEMMs")[0]
    assert "router" in section
    assert "estimator" not in section
    assert "10.4 %" in section
    assert all(len(line) <= width for line in text.splitlines())


def test_hostile_ops_are_text() -> None:
    report = example.hostile(one())
    assert "<img src=x" not in render_html(report)
    assert "\x1b" not in render_html(report) + render_markdown(report) + render_latex(report)


def with_intervals() -> Phase:
    """Of the router, of all that was added, and of a part so wide that it says nothing."""
    found = overhead(added_ci95=[1.2 * MS, 1.7 * MS])
    router, estimator, weights = found.parts
    router.ci95, estimator.ci95 = [1.3 * MS, 1.5 * MS], [-9e3 * MS, 9e3 * MS]
    return msgspec.structs.replace(example.phase(), overhead=found)


def test_intervals_of_parts_and_of_their_sum_have_a_column() -> None:
    table = overhead_table(with_intervals())
    assert table is not None
    at = [column.head for column in table.columns].index("95 % interval (ms)")
    assert at == 3
    assert [row[at].text for row in table.rows] == ["[1.300, 1.500]", "–", "–", "[1.200, 1.700]"]
    report = msgspec.structs.replace(example.two_phases(), phases={"prefill": with_intervals()})
    for text in (render_html(report), printed(report, 80), printed(report, 120)):
        assert "[1.300, 1.500]" in text and "[1.200, 1.700]" in text
    assert all(len(line) <= 60 for line in printed(report, 60).splitlines())
    assert "| router | 1.400 | 1.0 % | \\[1.300, 1.500\\] | added |" in render_markdown(report)
    assert r"router & 1.400 & 1.0 & [1.300, 1.500] & added" in render_latex(report)
