"""The answer in three sentences: what it says, and that it can be said aloud."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, LedgerPart, Phase, PhaseAnswer
from prunescope.analysis.summary.answer import LIMITS, MOST_WORDS, NOTHING, answer_phase
from prunescope.taxonomy.numbers import brief_time
from tests.analysis.report import example
from tests.stored import report_of

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
MS = 1e6


def phase() -> Phase:
    return example.two_phases().phases["prefill"]


def faults(told: PhaseAnswer) -> Iterator[str]:
    """Yield what one could not say aloud."""
    for name, most in LIMITS.items():
        text = re.sub(r"`[^`]*`", "", getattr(told, name) or "")
        if len(text) > most:
            yield f"{name} has {len(text)} characters"
        for sentence in re.split(r"(?<=[.:;])\s", text):
            if len(sentence.split()) > MOST_WORDS:
                yield f"{name} has a sentence of {len(sentence.split())} words: {sentence}"
        if re.search(r"\([^()]*\(", text):
            yield f"{name} has brackets in brackets"
        if re.search(r"\d\.\d{3,} (ms|µs)", text):
            yield f"{name} has more than three digits: {text}"
        if re.search(r"\b(RUN|BASELINE)\b", text):
            yield f"{name} has a placeholder"
    whole = " ".join(filter(None, (told.verdict, told.why, told.do)))
    if len(re.findall(r"\[[\d.]+, [\d.]+\]", whole)) > 1:
        yield "two intervals"
    if not told.verdict or (told.do is None) != told.why.endswith(NOTHING):
        yield "nothing to repair is said where something is, or is not said where nothing is"


def test_promise_and_cause_and_change() -> None:
    """140 ms dense, 105 promised, 121 pruned. Coverage 9.2 ms, of which lm_head 7.1; slower kernels
    4.75 ms; −1.5 ms of added work. The roofline bound is 1.21×."""
    told = answer_phase(phase())
    assert told.verdict == "1.16× faster [1.14, 1.17] of the promised 1.33×."
    assert told.why.startswith("9.20 ms go to work that the pruning never touched, above all ")
    assert "4.75 ms go to slower kernels." in told.why
    assert told.do is not None and told.do.endswith("a step.")
    assert list(faults(told)) == []


def test_masked_gemms_are_one_part() -> None:
    """Of 38.5 ms, 22 are of three masked GEMMs; no one of them is as large as the head."""
    told = phase()
    for gemm, role in zip(told.gemms, ("gate", "up", "down"), strict=False):
        gemm.role, gemm.axis = role, "2:4"
    shares = {"lm_head": 16.5, "gate": 8, "up": 8, "down": 6}
    for row in told.ledger or []:
        if row.row == "kernel_efficiency":
            row.ns, row.noise_ns, row.ci95 = 38.5 * MS, 0.1 * MS, [38 * MS, 39 * MS]
            row.parts = [LedgerPart(name=role, role=role, cls="matmul", ns=ms * MS)
                         for role, ms in shares.items()]  # fmt: skip
        elif row.row in ("coverage", "added_work"):
            row.ns, row.parts = 0.0, []
    why = answer_phase(told).why
    assert "above all 2:4 GEMMs of gate, up and down (22.0 ms) and lm_head (16.5 ms)" in why


def test_parts_of_one_role_are_one() -> None:
    """2.5 ms of element-wise kernels and 1.0 of copies in rope are 3.5 ms, beside 1.6 of gaps."""
    told = phase()
    for row in told.ledger or []:
        row.parts = []
        if row.row == "coverage":
            shares = ("rope", "pointwise", 2.5), (None, None, 1.6), ("rope", "layout", 1.0)
            row.parts = [LedgerPart(name="gaps kept", role=role, cls=cls, ns=ms * MS)
                         for role, cls, ms in shares]  # fmt: skip
    assert "above all rope (3.50 ms) and gaps (1.60 ms)" in answer_phase(told).why


def test_a_promise_inside_the_interval_is_kept() -> None:
    """140 / 1.34 = 104.5 ms: as promised, perhaps; so nothing is a cause, and nothing to repair."""
    kept = phase()
    assert kept.ladder is not None
    kept.ladder.realised_ci95 = [1.10, 1.34]
    kept.findings = [finding for finding in kept.findings if finding.severity != "critical"]
    told = answer_phase(kept)
    assert told.verdict == "1.16× faster [1.10, 1.34]; the promised 1.33× lies inside the interval."
    assert "go to" not in told.why and told.why.endswith(NOTHING) and told.do is None


def test_times_that_are_not_valid_have_no_causes() -> None:
    invalid = Finding(id="timing-not-valid", severity="critical", text="timing not valid",
                      evidence=[], change="measure again", predicted_ns=None)  # fmt: skip
    told = answer_phase(msgspec.structs.replace(phase(), findings=[invalid]))
    assert told.verdict.startswith("Timing not valid: ") and "1.16× is no evidence" in told.verdict
    assert " ms " not in told.why and "of the FLOPs" in told.why
    assert told.do == "Measure again."


@pytest.mark.parametrize("name", ["tiny-static-nk", "tiny-static-m", "tiny-static-k-mask"])
def test_runs_are_answered_aloud(name: str) -> None:
    for part in report_of(name).phases.values():
        assert part.answer is not None
        assert list(faults(part.answer)) == []


def test_every_trace_is_answered_aloud() -> None:
    paths = sorted((ROOT / "traces").glob("*.json.gz"))
    paths += sorted((DATA / "strangers3").glob("*_pruned.json.gz"))
    assert paths
    bad = []
    for path in paths:
        dense = path.with_name(path.name.replace("_pruned", "_dense"))
        baseline = dense if dense != path and dense.exists() else None
        for part in analyze(path, baseline=baseline, options=Options()).report.phases.values():
            assert part.answer is not None
            bad += [f"{path.name}: {fault}" for fault in faults(part.answer)]
    assert bad == []


@given(st.lists(st.text("abc (:;,`)", max_size=400), min_size=1, max_size=3))
def test_any_advice_is_cut_to_what_one_can_say(changes: list[str]) -> None:
    advised = phase()
    advised.findings = [
        Finding(id=f"f{i}", severity="critical", text="", evidence=[], change=change,
                predicted_ns=None)
        for i, change in enumerate(changes)
    ]  # fmt: skip
    told = answer_phase(advised)
    assert len(re.sub(r"`[^`]*`", "", told.do or "")) <= LIMITS["do"]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.00 µs"), (512, "0.51 µs"), (125_640, "126 µs"), (999_600, "1.00 ms"),
        (4_671_000, "4.67 ms"), (49_826_000, "49.8 ms"), (473_750_000, "474 ms"),
        (5.2437e9, "5,244 ms"), (11.751e9, "11.8 s"), (-1_500_000, "−1.50 ms"),
    ],
)  # fmt: skip
def test_three_digits_of_a_time_are_said(ns: float, text: str) -> None:
    assert brief_time(ns) == text
