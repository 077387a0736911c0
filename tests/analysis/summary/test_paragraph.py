"""The paragraph of a phase: what it says, and that it says no more than intervals and noise do."""

from __future__ import annotations

import io
import re

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import render_notebook
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import (
    FamilyVerdict,
    Finding,
    KernelRow,
    LedgerPart,
    Phase,
    Report,
    from_json,
    to_json,
)
from prunescope.analysis.summary.answer import answer_phase
from prunescope.analysis.summary.paragraph import first_to_read, summary
from tests.analysis.report import example
from tests.stored import report_of

MS = 1e6


def phase() -> Phase:
    return example.two_phases().phases["prefill"]


def shown(report: Report, width: int = 80, *, full: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(report, console, full=full)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_promise_outcome_causes_and_change_in_this_order() -> None:
    """140 ms dense, 105 ms promised, 121 ms pruned: 16 ms longer than promised."""
    text = summary(phase())
    places = [
        text.index(part)
        for part in (
            "1.16× realised [1.14×, 1.17×] of 1.33× promised",
            "The shapes are those of static-nk (confidence 93 %)",
            "The step takes 121.00 ms, 16.000 ms longer than the 105.00 ms promised: ",
            "work that the pruning never touched (coverage) +9.200 ms, +6.6 % of the dense step "
            "(largest part: lm_head untouched, +7.100 ms)",
            "Against it: kernels that only dense runs (added work) −1.500 ms",
            "What would gain most: ",
        )
    ]
    assert places == sorted(places)


def test_a_row_without_evidence_is_no_cause() -> None:
    quiet = phase()
    for row in quiet.ledger or []:
        if row.row == "coverage":
            row.noise_ns = 5 * MS  # twice of it is more than its 9.2 ms
    assert "coverage" in summary(phase()) and "(coverage)" not in summary(quiet)


def test_bytes_are_not_said_to_stay_behind_flops_that_grew() -> None:
    """Bytes that stay behind cost 1.6 ms of 140; at a FLOP ratio of 0.85x the FLOPs grew."""
    fell, grew = phase(), phase()
    for one, flop in ((fell, 1.33), (grew, 0.85)):
        assert one.ladder is not None
        one.ladder.flop = flop
        for row in one.ledger or []:
            if row.row == "coverage":
                row.ns, row.parts = 0.0, []
    assert "bytes that did not fall with the FLOPs (roofline shift) +1.600 ms" in summary(fell)
    assert "bytes that grew more than the FLOPs (roofline shift) +1.600 ms" in summary(grew)


@pytest.mark.parametrize(("ns", "words"), [(3, "mostly interrupted calls"), (2, "slower kernels")])
def test_what_a_finding_accounts_for_has_no_other_cause(ns: float, words: str) -> None:
    """3 of 4.75 ms were interruptions: the kernels are no slower; 2 of them are less than half."""
    stopped = phase()
    found = Finding(id="interrupted-ops", severity="warning", text="", evidence=[], change=None,
                    predicted_ns=None, accounts_for={"kernel_efficiency": ns * MS})  # fmt: skip
    stopped.findings = [*stopped.findings, found]
    assert "slower kernels (kernel efficiency) +4.750 ms" in summary(phase())
    assert words in summary(stopped)
    assert ("slower kernels" in summary(stopped)) == (words == "slower kernels")


def test_the_miss_goes_by_the_interval_of_the_speedup() -> None:
    """16 ms above the promise. Samples that took turns exclude 1.33× however far single steps of
    one side lie apart; only without an interval does their noise say what is evidence."""
    noisy = phase()
    assert noisy.ladder is not None
    for row in noisy.ledger or []:
        if row.row == "pruned":
            row.noise_ns = 8 * MS  # twice of it is not less than the 16 ms
    missed = "16.000 ms longer than the 105.00 ms promised"
    assert f"{missed}: work that the pruning never touched (coverage) +9.200 ms" in summary(noisy)
    noisy.ladder.realised_ci95 = [1.10, 1.34]  # 140 / 1.34 = 104.5 ms: as promised, perhaps
    includes = "which is no evidence: the interval of the speedup includes the promised one"
    assert f"{missed}, {includes}" in summary(noisy) and "(coverage)" not in summary(noisy)
    noisy.ladder.realised_ci95 = None
    inside = "which is no evidence: it is inside twice its noise (±8.000 ms)"
    assert f"{missed}, {inside}" in summary(noisy)


def test_a_step_that_takes_what_was_promised_is_not_shorter_by_nothing() -> None:
    """105 ms promised, 105 ms pruned: no miss to explain, and no "0.00 µs shorter"."""
    met = phase()
    for row in met.ledger or []:
        if row.row == "pruned":
            row.ns = 105 * MS
    text = summary(met)
    assert "The step takes exactly the 105.00 ms promised." in text
    assert "0.00" not in text and "shorter" not in text and "no row of the ledger" not in text


def test_few_steps_without_an_interval_give_their_range_and_no_cause() -> None:
    """Dense steps of 100 and 180 ms promise 75 to 135 ms; pruned ones take 80 and 162 ms."""
    few = msgspec.structs.replace(phase(), unprofiled_ns=None, step_ns=[80_000_000, 162_000_000])
    assert few.ladder is not None and few.baseline is not None
    few.ladder.realised_ci95 = None
    few.baseline.step_ns = [100_000_000, 180_000_000]
    text = summary(few)
    assert (
        "So few steps give no interval of the speedup: 2 pruned steps take 80.000 ms to 162.00 ms, "
        "2 dense steps take 100.00 ms to 180.00 ms."
    ) in text
    assert (
        "which is no evidence: at that ratio single dense steps take 75.000 ms to 135.00 ms, and "
        "so do pruned ones"
    ) in text
    assert "(coverage)" not in text
    few.step_ns, few.baseline.step_ns = [120_000_000, 122_000_000], [140_000_000, 140_000_000]
    assert "(coverage)" in summary(few) and "2 pruned steps take 120" in summary(few)
    assert "dense steps take" not in summary(few)


def test_where_times_are_no_evidence_the_paragraph_explains_none() -> None:
    invalid = Finding(
        id="timing-not-valid", severity="critical", text="disturbed", evidence=[],
        change="measure again", predicted_ns=None,
    )  # fmt: skip
    text = summary(msgspec.structs.replace(phase(), findings=[invalid]))
    assert "longer than" not in text and "coverage" not in text
    assert text.startswith("timing not valid: ")
    # Of shapes alone: the dense FLOPs over those that are left are 1.251.
    kept = "by its shapes a step keeps 79.9 % of the dense FLOPs"
    assert text.endswith(f"First: measure again. Whatever the times are: {kept}.")
    same = msgspec.structs.replace(
        phase(), findings=[invalid], sparsity={"nominal": 0.5, "flop": 0.0, "bytes": 0.0}
    )
    assert summary(same).endswith("of the dense bytes, so no gain is to be expected.")
    unread = msgspec.structs.replace(phase(), findings=[invalid], sparsity={"nominal": 0.5})
    assert summary(unread).endswith("First: measure again.")


def test_a_step_alone_says_where_its_time_goes() -> None:
    (alone,) = example.alone().phases.values()
    assert re.search(r"Most of the busy time: \w+ [\d.]+ m?s \(\d+ %\)", summary(alone))


def test_it_is_in_the_report_and_in_every_format() -> None:
    report = report_of("tiny-static-nk")
    for one in report.phases.values():
        assert 40 < len(one.summary) < 900
        assert one.answer is not None and one.answer.sentence
        assert msgspec.structs.replace(one.answer, sentence=None) == answer_phase(one)
        assert "fewer heads (v N 64 → 32) and MLP channels (down K 352 → 176)." in summary(one)
        begins = one.summary[:40]
        assert begins in " ".join(shown(report).split())
        assert begins.split(" [")[0] in render_markdown(report)  # which escapes brackets
        assert begins in render_html(report) and begins in render_notebook(report)
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize("name", ["tiny-static-nk", "tiny-static-m", "tiny-static-k-mask"])
def test_an_answer_takes_at_most_45_lines_a_phase(name: str) -> None:
    report = report_of(name)
    for width in (80, 120):
        lines = shown(report, width).splitlines()
        assert len(lines) <= 45 * len(report.phases) + 6, width  # and a head
        assert max(map(cell_len, lines)) <= width
        assert len(shown(report, width, full=True).splitlines()) > len(lines), width


def test_what_was_left_out_is_said() -> None:
    report = example.two_phases()
    findings = [
        Finding(id=f"f{i}", severity="info", text=f"text {i}", evidence=[], change=None,
                predicted_ns=None)
        for i in range(4)
    ]  # fmt: skip
    report.phases = {"prefill": msgspec.structs.replace(phase(), findings=findings)}
    text = shown(report)
    assert "text 0" in text and "text 1" not in text
    assert "3 more findings, all tables and what was measured: --full" in text


def test_a_change_is_said_once_and_notes_come_last() -> None:
    report = example.two_phases()
    report.warnings = ["a note"]
    report.phases.pop("decode")
    text = " ".join(shown(report).split())
    change = (report.phases["prefill"].findings[0].change or "").split(";")[0]
    assert change and text.lower().count(change) == 1
    for page in (shown(report, full=True), text, render_markdown(report), render_html(report),
                 render_notebook(report)):  # fmt: skip
        assert page.index("a note") > page.index("1.16× faster") > 0


def test_the_answer_cuts_nothing() -> None:
    assert "…" not in shown(example.two_phases())


def test_what_a_rank_waits_is_no_slower_kernel() -> None:
    told = phase()
    for row in told.ledger or []:
        if row.row == "kernel_efficiency":
            row.ns, row.noise_ns, row.ci95 = 9 * MS, 0.1 * MS, [8.9 * MS, 9.1 * MS]
            row.parts = [LedgerPart(name="all-reduce", role="unknown", cls="comm", ns=8 * MS)]
    assert "communication that takes longer (kernel efficiency) +9.000 ms" in summary(told)


def test_what_a_recording_lacks_is_said_in_the_paragraph() -> None:
    verdict = FamilyVerdict(
        id="unknown", confidence=0.3, evidence=[], alternatives=["static-nk"], by_order=True
    )
    text = summary(msgspec.structs.replace(phase(), family=verdict))
    assert "The order of kernels does not identify the family, perhaps static-nk: record" in text
    assert "with_stack=True" in text and "with_stack=True" not in summary(phase())
    served = msgspec.structs.replace(phase(), family=verdict, profiler="Nsight Systems")
    assert "perhaps static-nk: record NVTX ranges" in summary(served)
    nameless = phase()
    nameless.kinds["attention"] = 1.0
    for gemm in nameless.gemms:
        gemm.role, gemm.op = "unknown", "aten::mm"
    assert "Only 0 % of the time of GEMMs has a role: record modules" in summary(nameless)
    recorded = msgspec.structs.replace(nameless, roles_from="modules")
    assert "has a role" not in summary(recorded)  # nothing more can be recorded
    fused = KernelRow(
        name="void at::native::transform_bias_rescale_qkv_kernel<float>", kind="elementwise",
        role="unknown", count=1, busy_ns=1, bound=None, efficiency=None,
    )  # fmt: skip
    text = summary(msgspec.structs.replace(nameless, kernels=[fused]))
    assert "set_fastpath_enabled(False)" in text and "record modules" not in text


def test_of_many_phases_the_late_rank_is_read_first() -> None:
    late = Finding(id="straggler", severity="warning", text="late", evidence=[], change=None,
                   predicted_ns=None)  # fmt: skip
    slow, fast = phase(), phase()
    assert slow.ladder is not None
    slow.ladder.realised = 0.9
    assert first_to_read({"rank0": fast, "rank1": slow}) == "rank1"
    held = msgspec.structs.replace(fast, findings=[late])
    assert first_to_read({"rank0": held, "rank1": slow}) == "rank0"


def test_the_largest_row_is_named_even_without_evidence() -> None:
    """Three times as much as the largest cause, and within its noise."""
    unproven = phase()
    rows = {row.row: row for row in unproven.ledger or []}
    told = max(
        abs(row.moves_ns) for row in rows.values() if row.row not in ("dense", "pruned", "promised")
    )
    rows["launch_idle"].ns, rows["launch_idle"].noise_ns = 3 * told, 2 * told
    rows["launch_idle"].parts, rows["launch_idle"].ci95 = [], None
    assert "No evidence, as it is inside twice its noise (±" in summary(unproven)
    rows["launch_idle"].noise_ns, rows["launch_idle"].ci95 = None, [-told, 7 * told]
    assert "No evidence, as its interval includes 0: launch and idle +" in summary(unproven)
    assert "No evidence" not in summary(phase())


def test_invalid_times_leave_the_family_and_their_own_change_first() -> None:
    """Shapes need no times; another critical finding does not come before."""
    broken = phase()
    masks = Finding(id="zeros-not-removed", severity="critical", text="zeros", evidence=[],
                    change="remove whole heads", predicted_ns=None)  # fmt: skip
    invalid = Finding(id="timing-not-valid", severity="critical", text="disturbed", evidence=[],
                      change="stop everything else", predicted_ns=None)  # fmt: skip
    broken.findings[:0] = [masks, invalid]
    told = summary(broken)
    kept = "First: stop everything else. Whatever the times are: by its shapes a step keeps 79.9 % "
    kept += "of the dense FLOPs"
    assert told.endswith(f"{kept}; remove whole heads.")
    masks.severity = "warning"  # of a finding that is critical by a measured time
    told = summary(broken)
    assert told.endswith(f"{kept}.") and "remove whole heads" not in told
    assert broken.family is not None and f"those of {broken.family.id}" in told


def test_masks_promise_no_gain_whatever_the_times_are() -> None:
    """Every GEMM keeps its shape; a layer less, or a step of which kernels lack, says less."""
    masked = phase()
    invalid = Finding(id="timing-not-valid", severity="critical", text="disturbed", evidence=[],
                      change="stop everything else", predicted_ns=None)  # fmt: skip
    masked.findings = [invalid]
    assert masked.family is not None and masked.pairing is not None
    masked.family.id, masked.pairing.removed = "static-k-mask", 0
    masked.sparsity["flop"] = 0.0
    for gemm in masked.gemms:
        gemm.axis = "none"
    told = "First: stop everything else. Whatever the times are: {} in the shape of its dense one, "
    told += "so no gain is to be expected."
    assert summary(masked).endswith(told.format("zeros leave every GEMM"))
    masked.family.id = "dense"
    assert summary(masked).endswith(told.format("every GEMM is left"))
    masked.pairing.removed = 3
    assert summary(masked).endswith("First: stop everything else.")
    masked.pairing.removed, masked.gemms[0].axis = 0, "unknown"
    assert summary(masked).endswith("First: stop everything else.")


@pytest.mark.parametrize("full", [False, True])
def test_bars_of_times_that_are_no_evidence_have_the_strokes_of_the_pictures(full: bool) -> None:
    """Crosses, named below the ladder, on all that rests on times; a FLOP ratio does not. No share
    of a bound is realised."""
    report = example.two_phases()
    report.phases.pop("decode")
    assert "xx" not in shown(report, full=full) and "realised is" in shown(report, full=full)
    invalid = Finding(id="timing-not-valid", severity="critical", text="disturbed", evidence=[],
                      change=None, predicted_ns=None)  # fmt: skip
    report.phases["prefill"].findings[:0] = [invalid]
    text = shown(report, full=full)
    if not full:  # what the shapes say stands there alone
        assert "Ladder:" not in text and "Ledger:" not in text and "GEMMs" in text
        return
    ladder, _, ledger = text[text.index("Ladder:") :].partition("Ledger:")
    assert re.search(r"realised +1\.16× x{4,} ", ladder)
    assert re.search(r"roofline bound +[\d.]+× x+ ", ladder) and "realised is" not in ladder
    assert re.search(r"FLOP ratio +[\d.]+× ░+", ladder)
    assert "xxx timing not valid" in ladder
    assert re.search(r"coverage .* x+ ", ledger) and "█" not in ladder + ledger
    shares = re.findall(r'class="n share">([^<]+)<', render_html(report))
    assert set(shares) == {"–", "share realised"}
