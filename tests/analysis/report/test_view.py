"""The GEMM table and the ledger as rows of cells: what is one row, and what is left empty."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import gemm_table, ledger_view, view
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.phase_tables import sides_table
from prunescope.analysis.schema.report import Phase, Row, from_json, to_json
from tests.analysis.decoder import Layer, decoder
from tests.analysis.report import example
from tests.chrome import chrome, k, op, save, step

ROOT = Path(__file__).resolve().parents[3]


def golden(name: str) -> list[Phase]:
    return list(analyze(ROOT / "traces" / name).report.phases.values())


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
    for gemm in gemm_table.with_gone(phase.gemms):
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
    (shown,) = (one.gemm for one in gemm_table.shown_rows(phase.gemms) if one.gemm.role == "up")
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
        assert gemms.notes[0] == f"1 smaller row, together 0.00 µs, left out here{said}"
        assert kernels.notes == [
            "smaller rows are left out here; 1 of them ran 12.0 µs hidden under other kernels"
        ]


def test_a_noise_that_is_0_by_definition_is_not_shown() -> None:
    phase = example.two_phases().phases["prefill"]
    assert phase.ledger is not None
    phase.ledger[2].noise_ns = phase.ledger[5].noise_ns = 0.0  # coverage, kernel efficiency
    table = ledger_view.ledger_table(phase)
    assert table is not None
    noise = dict(zip(column(table, "row"), column(table, "noise"), strict=True))
    assert (noise["coverage"], noise["kernel efficiency"]) == ("", "±0.00")
    assert "no noise stands where dense against dense is 0 by definition" in table.notes
    rows = [Row(row="coverage", ns=1.0, noise_ns=1.0)]
    assert not [n for n in ledger_view.ledger_notes(rows) if "definition" in n]


def test_what_papers_print_beside_a_speedup() -> None:
    report = analyze(ROOT / "traces" / "tiny-static-nk").report
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
    assert "### Dense and pruned" in render_markdown(report)
    assert "Dense and pruned, tiny-llama, static-nk, decode" in render_latex(report)
    assert sides_table(example.alone().phases["trace"]) is None


def test_a_row_of_nothing_names_no_part() -> None:
    """2 ns of 4.5 ms read 0.0 %: what they are mostly of says nothing."""
    phase = example.phase()
    rows = {row.row: row for row in phase.ledger or []}
    one = rows["roofline_shift"]
    assert one.ns is not None and one.parts and rows["dense"].ns is not None
    at = list(rows).index("roofline_shift")
    for share, shown in ((0.0004, False), (0.0006, True)):
        one.ns = share * rows["dense"].ns
        table = ledger_view.ledger_table(phase)
        assert table is not None and bool(table.rows[at][-1].text) == shown


def test_a_kernel_above_its_bound_has_the_mark_of_a_gemm_above_it() -> None:
    (phase,) = example.alone().phases.values()
    kernels = [msgspec.structs.replace(phase.kernels[0], efficiency=1.403)]
    table = gemm_table.kernel_table(kernels, phase.busy_ns)
    assert table.rows[0][-1].text == "140.3 %!"
    assert any(note.startswith("! ≥ 100 %") for note in table.notes)
    below = gemm_table.kernel_table(phase.kernels, phase.busy_ns)
    assert not any(note.startswith("!") for note in below.notes)
