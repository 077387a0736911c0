"""GEMMs replayed alone against the ledger, with times made from the report's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.paying_alignment import paying_alignment
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.replayed import _judge, _summarise, cases_of, with_replays, with_tiles
from prunescope.analysis.report.figures import plot
from prunescope.analysis.report.phase_tables import Extent, phase_tables
from prunescope.analysis.report.replay_tables import replay_table, replayed
from prunescope.analysis.report.sheet import Line, kept_columns
from prunescope.analysis.schema.replay import ReplayLine
from prunescope.analysis.schema.report import NOT_VALID, Finding, GemmRow, LedgerPart, Phase, Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.replays import (
    GemmCase,
    ReplayDevice,
    ReplayedGemm,
    ReplayPeaks,
    Replays,
    StepCurve,
    times_of,
)

RUN = Path(__file__).parents[2] / "traces" / "tiny-static-nk"


@pytest.fixture(scope="module")
def report() -> Report:
    return analyze(RUN).report


def per_call(phase: Phase, role: str) -> tuple[float, float]:
    """ns of a call of the pruned and of the dense GEMM of a role, in the time base of the
    ledger."""
    walls = {row.row: row.ns or 0 for row in phase.ledger or []}
    assert phase.baseline is not None
    row = next(one for one in phase.gemms if one.role == role)
    assert row.dense_busy_ns and row.dense_count
    pruned = row.busy_ns / row.count * walls["pruned"] / phase.wall_ns
    return pruned, row.dense_busy_ns / row.dense_count * walls["dense"] / phase.baseline.wall_ns


def kernel_ns(phase: Phase, role: str) -> float:
    row = next(one for one in phase.ledger or [] if one.row == "kernel_efficiency")
    return sum(one.ns for one in row.parts if one.role == role and one.cls == "matmul")


def expected(phase: Phase, role: str) -> float:
    """What work, roofline and shape leave of the dense time."""
    row = next(one for one in phase.ledger or [] if one.row == "kernel_efficiency")
    (part,) = [one for one in row.parts if one.role == role and one.cls == "matmul"]
    assert isinstance(part.expected, float)
    return part.expected


def replays(
    cases: list[GemmCase],
    report: Report,
    *,
    pruned_as: str,
    apart: float = 0.01,
    chilled_ns: float = 0.0,
) -> Replays:
    """As if each GEMM ran alone as it does in the ledger ("inside"), or as long as work, roofline
    and shape say of the dense one ("ideal"); placements are `apart`, a share, and cold is so much
    longer; of the pruned one by `chilled_ns` more."""
    found = Replays(device=ReplayDevice(kind="cpu"), peaks=ReplayPeaks())
    for case in cases:
        assert case.dense and case.phase and case.role
        phase, role = report.phases[case.phase], case.role.split(", ")[0]
        _, dense = per_call(phase, role)
        row: GemmRow = next(one for one in phase.gemms if one.role == role)
        lost = kernel_ns(phase, role) if pruned_as == "inside" else 0.0
        pruned = (lost + expected(phase, role) * (row.dense_count or 0) * dense) / row.count
        for gemm, ns, reason in ((case.pruned, pruned, "pruned"), (case.dense, dense, "dense")):
            warm = [[(1 - apart) * ns], [ns], [(1 + apart) * ns]]
            more = chilled_ns if reason == "pruned" else 0.0
            found.gemms.append(
                ReplayedGemm(
                    reasons=[reason],
                    role=case.role,
                    phase=case.phase,
                    batch=gemm.batch,
                    m=gemm.m,
                    n=gemm.n,
                    k=gemm.k,
                    dtype=case.dtype,
                    warm=times_of(warm),
                    cold=times_of([[(1 + apart) * one + more] for (one,) in warm]),
                    share_of_bound=0.5,
                )  # fmt: skip
            )
    return found


def test_gemms_that_run_alone_as_in_the_model_explain_the_ledger(report: Report) -> None:
    cases, left_out = cases_of(report)
    assert not left_out and {case.phase for case in cases} == set(report.phases)
    alone = [case for case in cases if case.role in ("down", "q")]
    found = with_replays(report, replays(alone, report, pruned_as="inside"), None)
    for name, phase in found.phases.items():
        replay = phase.replay
        assert replay is not None and {one.role for one in replay.lines} == {"down", "q"}
        for line in replay.lines:
            pruned, _ = per_call(phase, line.role)
            assert line.inside_ns == pytest.approx(pruned)
            assert line.ledger_ns == pytest.approx(kernel_ns(phase, line.role))
            assert line.alone_ci95 is not None and line.ledger_ns is not None
            low, high = line.alone_ci95
            assert low < line.ledger_ns < high, name
            assert 0.4 < expected(phase, line.role) < 1  # half of N or K is gone
        assert expected(phase, "lm_head") == 1  # nothing is gone
        assert replay.explains is True and replay.text.endswith("within its interval.")
        table = next(t for t in phase_tables(phase, Extent()) if t.id == "replayed")
        assert [row[0].text for row in table.rows] == [one.role for one in replay.lines]


def with_parts(report: Report, role: str, **fields: Any) -> Report:
    """The report with other fields of a role's part of the kernel row, in prefill."""
    phase = report.phases["prefill"]
    rows = [
        msgspec.structs.replace(
            row,
            parts=[
                msgspec.structs.replace(part, **fields)
                if part.role == role and part.cls == "matmul"
                else part
                for part in row.parts
            ],
        )
        if row.row == "kernel_efficiency"
        else row
        for row in phase.ledger or []
    ]
    changed = msgspec.structs.replace(phase, ledger=rows)
    return msgspec.structs.replace(report, phases={"prefill": changed})


def test_a_kernel_that_is_slow_only_in_the_model(report: Report) -> None:
    """With noise and intervals of the ledger narrowed, each verdict is that of its times."""
    lossy = with_parts(report, "down", ns=5e4, ci95=[4e4, 6e4], noise_ns=1e3)
    cases = [c for c in cases_of(lossy)[0] if c.role == "down"]

    def line(pruned_as: str, **more: float) -> ReplayLine:
        times = replays(cases, lossy, pruned_as=pruned_as, apart=1e-5, **more)
        replay = with_replays(lossy, times, None).phases["prefill"].replay
        assert replay is not None
        return replay.lines[0]

    # As fast alone as the ledger expects: its 50 µs are lost in the model and nowhere else.
    found = line("ideal")
    assert found.verdict == "inside" and found.text.endswith("neighbours or the launch")
    assert found.alone_ci95 == pytest.approx([0, 0], abs=1e-6)
    # As slow alone as in the model: the library is.
    found = line("inside")
    assert found.verdict == "library" and found.alone_ci95 is not None
    assert found.alone_ci95 == pytest.approx([5e4, 5e4], rel=0.1)
    # Slow alone where its operands are cold, and there only.
    found = line("ideal", chilled_ns=5e4 / found.count)
    assert found.verdict == "inside" and found.text.endswith("the cache")


@pytest.mark.parametrize(("ends", "says"), [
    ([-2e4, 6e4], "differ by 20.0 µs (95 %: −20.0 µs to 60.0 µs), within noise as they should"),
    ([1e4, 3e4], "beyond noise: so much comes from what runs around a GEMM, not its shape"),
])  # fmt: skip
def test_a_gemm_that_was_not_pruned_loses_nothing_by_it(
    report: Report, ends: list[float], says: str
) -> None:
    """The LM head is one GEMM measured twice, dense and pruned, 20 µs apart."""
    twice = with_parts(report, "lm_head", ns=2e4, ci95=ends, noise_ns=None)
    cases = [case for case in cases_of(twice)[0] if case.role in ("lm_head", "down")]
    assert [case.dense == case.pruned for case in cases if case.role == "lm_head"] == [True]
    replay = with_replays(twice, replays(cases, twice, pruned_as="inside"), None)
    found = replay.phases["prefill"].replay
    assert found is not None
    head = next(line for line in found.lines if line.role == "lm_head")
    assert head.verdict == "unpruned" and head.alone_ci95 is None and says in head.text
    assert found.ledger_ns == pytest.approx(kernel_ns(twice.phases["prefill"], "down"))
    assert "the GEMMs of 1 role account" in found.text
    cases = [case for case in cases if case.role == "lm_head"]
    alone = with_replays(twice, replays(cases, twice, pruned_as="inside"), None)
    found = alone.phases["prefill"].replay
    assert found is not None and found.text.startswith("None of the replayed GEMMs was pruned")


def test_no_verdict_rests_on_times_that_are_not_valid(report: Report) -> None:
    """Of the run, or of the GEMMs alone: marked, in every table, with the reason."""
    cases = [case for case in cases_of(report)[0] if case.phase == "prefill"]
    text, line = "timing not valid: something else ran", "9 of 20 samples disturbed: waits"
    not_valid = Finding(
        id=NOT_VALID, severity="critical", text=text, evidence=[line], change=None,
        predicted_ns=None,
    )  # fmt: skip
    phase = report.phases["prefill"]
    valid = msgspec.structs.replace(report, phases={"prefill": phase})
    phase = msgspec.structs.replace(phase, findings=[not_valid, *phase.findings])
    invalid = msgspec.structs.replace(report, phases={"prefill": phase})
    for of, disturbed, reason in (
        (invalid, [], f"{text} ({line})"),
        (valid, ["waits"], "the GEMMs alone were disturbed by waits"),
    ):
        times = replays(cases, of, pruned_as="inside")
        times.disturbed = disturbed
        explained = with_replays(of, times, None)
        shown = explained.phases["prefill"]
        assert shown.replay is not None and shown.replay.withheld == reason
        assert {line.verdict for line in shown.replay.lines} == {"withheld", "unpruned"}
        assert shown.replay.text == f"No GEMM has a verdict: {reason}."
        assert shown.replay.explains is None
        table = replay_table(shown, "prefill")
        assert table is not None and any(note.startswith("? ") for note in table.notes)
        titles = [column.title for column in table.columns]
        inside, warm, slow = (
            [row[titles.index(title)].text for row in table.rows]
            for title in ("in the model", "alone, warm", "slow")
        )
        assert all(one.endswith(" ?") for one in (warm if disturbed else inside))
        assert not any(one.endswith(" ?") for one in (inside if disturbed else warm))
        assert set(slow) == {"no verdict", "not pruned"}
        # What it is about stays where the terminal is narrow.
        assert {table.columns[i].title for i in kept_columns(table, 80)} >= {"slow", "lost inside"}
        printed = [part for part in replayed(times, explained).parts if isinstance(part, Line)]
        assert sum(reason in part.text for part in printed) == 1  # once, not a line a GEMM


def test_intervals_that_say_nothing_explain_nothing() -> None:
    """Replayed on a busy machine: -563 to 237 ms of -46 ms, which is -151 to 59 ms itself."""
    wide, row = [-563e6, 237e6], [-151e6, 59e6]
    summary = _summarise(8, -46e6, row, wide, [])
    assert summary.endswith("both intervals include 0, so that neither shows a loss or a gain.")
    assert _summarise(8, 46e6, [31e6, 59e6], wide, []).endswith("within its interval.")


def test_a_cold_cache_explains_no_more_than_it_takes() -> None:
    """6 ms [5, 7] are lost in the model, and 0.4 to 0.6 ms alone with a cold cache: t(2 degrees of
    freedom) = 4.3, so that the interval of 0.5 ± 0.1 is ± 0.25 wide."""
    warm, cold = [-1e3, 0.0, 1e3], [0.4e6, 0.5e6, 0.6e6]
    part = LedgerPart(name="up", role="up", cls="matmul", ns=6e6, ci95=[5e6, 7e6], noise_ns=0.1e6)
    kind, text = _judge("up", part, warm, cold)
    assert kind == "inside"
    assert text.endswith(": the cache, and 4.252 ms at least are neighbours or the launch")
    part.ci95 = [0.2e6, 9e6]
    assert _judge("up", part, warm, cold)[1].endswith(": the cache")


@pytest.mark.parametrize(("faster", "apart", "says"), [
    (0.8, 0.01, "aligned to 16 take 24.0 µs a step less"),
    (0.97, 0.001, "none of the alignments 1, 16, 128"),  # beyond noise, but little
    (0.8, 0.5, "none of the alignments 1, 16, 128"),  # not beyond noise
])  # fmt: skip
def test_the_alignment_that_would_have_paid(faster: float, apart: float, says: str) -> None:
    """N = 1,000 was kept, 1,008 and 1,024 run at `faster` of its time for each number; 3 calls of
    40 µs each. A third GEMM of the same role that is no aligned one says nothing."""

    def one(n: int, ns: float, spread: float, **more: Any) -> ReplayedGemm:
        times = times_of([[ns * (1 + spread * i)] for i in (-1, 0, 1)])
        return ReplayedGemm(role="up", phase="prefill", m=8, n=n, k=64, dtype="fp32", dense_n=2000,
                            dense_k=64, warm=times, cold=times, **more)  # fmt: skip

    shapes = [
        one(1000, 4e4, 0.0, reasons=["pruned", "aligned"], align=8),
        one(1001, 4e4 * 1.001, 0.0, reasons=["aligned"], align=1),
        one(1008, 4e4 * 1.008 * faster, apart, reasons=["aligned"], align=16),
        one(1024, 4e4 * 1.024 * faster * 1.01, apart, reasons=["aligned"], align=128),
        one(960, 1.0, 0.0, reasons=["good"]),
    ]
    found = paying_alignment("prefill", shapes, lambda _: 3)
    assert says.replace("1, 16", "1, 8, 16") in found
    assert ("--set align=16" in found) == ("aligned to 16" in says)
    assert paying_alignment("decode", shapes, lambda _: 3) == ""


def test_curves_are_drawn_and_read_back(report: Report, tmp_path: Path) -> None:
    case = next(c for c in cases_of(report)[0] if c.role == "down")
    found = replays([case], report, pruned_as="inside")
    found.gemms[0].kernel = "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_tn"
    found.curves = [
        StepCurve(
            axis="N", role="up", phase="prefill", m=32, k=128, dtype="fp32",
            sizes=[64, 128, 192, 256], ns=[14e3, 18e3, 22e3, 26e3], width=64, step_ns=4e3,
            base_ns=1e4,
        )
    ]  # fmt: skip
    assert with_tiles(found).gemms[0].tile == "128x64"
    path = tmp_path / "gemms.json"
    path.write_bytes(msgspec.json.encode(plain(found)))
    read = analyze(RUN, options=Options(gemm=path)).report
    clear = plot(read, "prefill", "replay")
    assert clear is not None
    assert [text.get_text() for text in clear.legends[0].get_texts()] == ["measured", "steps"]
    kept = read.phases["prefill"].replay
    assert kept is not None
    kept.disturbed = ["waits"]
    hatched = plot(read, "prefill", "replay")
    assert hatched is not None and hatched.axes[0].patches[0].get_hatch()
    assert [text.get_text() for text in hatched.legends[0].get_texts()][2:] == [
        "disturbed by waits"
    ]
    assert read.phases["decode"].replay is None
    path.write_text('{"schema": 1, "gemms": [{"m": -1}]}')
    with pytest.raises(PrunescopeError, match="gemms"):
        analyze(RUN, options=Options(gemm=path))


def test_replays_of_another_device_are_refused(report: Report) -> None:
    from prunescope.taxonomy.runs.run import read_run

    found = Replays(device=ReplayDevice(name="another"), peaks=ReplayPeaks())
    with pytest.raises(PrunescopeError, match="another"):
        with_replays(report, found, read_run(RUN / "pruned"))
    with pytest.raises(PrunescopeError, match="none of the replayed"):
        with_replays(report, found, None)
