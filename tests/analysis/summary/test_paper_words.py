"""What a paper prints of a phase: its setting, its digits, and nothing that is no evidence."""

from __future__ import annotations

import msgspec
import pytest

from prunescope.analysis.schema.report import Finding, Phase
from prunescope.analysis.schema.sides import DeviceUsed, SideFacts
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.analysis.summary.answer import summary_of
from prunescope.analysis.summary.paper_words import caption_words, paper_sentence
from prunescope.taxonomy.numbers import estimate
from tests.analysis.report import example
from tests.stored import report_of

SUBJECT = SideFacts(name="r", model="SmolLM2-135M", method="mine:by_norm", display_name="Ours")
DEVICE = DeviceUsed(name="AMD EPYC", peaks=None, source=None, measured=False, sheet=None)
WORKLOAD = PhaseWorkload(
    batch=4, prompt_len=512, context=512, dtype="bf16", mode="eager", device="AMD EPYC",
    threads=2, on_host=True, new_tokens=512, cache="dynamic",
)  # fmt: skip


def phase(**more: object) -> Phase:
    plain = example.two_phases().phases["prefill"]
    return msgspec.structs.replace(plain, **{"workload": WORKLOAD, **more})


@pytest.mark.parametrize(
    ("value", "ci95", "text"),
    [
        (95.415, [87.956, 108.940], "95.4 [88, 109]"),  # half: 10.5, two digits
        (1.5561, [1.482, 1.634], "1.56 [1.48, 1.63]"),  # half: 0.076, one
        (1.1563, [1.1412, 1.1684], "1.156 [1.141, 1.168]"),  # half: 0.0136, two
        (1234.5, [1100.0, 1400.0], "1230 [1100, 1400]"),
        (12.345, None, "12.3"),
        (1.0, [1.0, 1.0], "1.00"),
        (-0.5, [-0.8, -0.2], "−0.500 [−0.80, −0.20]"),
        (2.0, [float("nan"), 3.0], "2.00"),
    ],
)  # fmt: skip
def test_digits_follow_from_the_interval(value: float, ci95: list[float] | None, text: str) -> None:
    assert str(estimate(value, ci95)) == text


@pytest.mark.parametrize(
    ("value", "ci95", "against", "text"),
    [
        (1.3523, [0.968, 1.861], 1.0, "1.35 [0.97, 1.86]"),  # not faster beyond noise
        (1.1821, [1.041, 1.902], 1.0, "1.18 [1.04, 1.90]"),  # faster beyond noise
        (1.3523, [0.968, 1.861], None, "1.35 [1.0, 1.9]"),
        (1.2, [0.9996, 1.4], 1.0, "1.2000 [0.9996, 1.4000]"),
        (0.31, [0.004, 0.9], 0.0, "0.310 [0.004, 0.900]"),  # not as low as 0
        (1.2, [1.0, 1.4], 1.0, "1.20 [1.00, 1.40]"),  # equal to 1, and shown so
        (1.374, [1.362, 2.49], None, "1.37 [1.36, 2.49]"),  # 1.4 is above the value
    ],
)  # fmt: skip
def test_no_end_crosses_what_it_is_compared_with(
    value: float, ci95: list[float], against: float | None, text: str
) -> None:
    assert str(estimate(value, ci95, against=against)) == text


def test_a_sentence_of_no_measurable_speedup_has_an_interval_with_one_inside() -> None:
    ladder = msgspec.structs.replace(
        example.two_phases().phases["prefill"].ladder, realised=1.3523, realised_ci95=[0.968, 1.861]
    )
    text = paper_sentence("prefill", phase(ladder=ladder), SUBJECT, DEVICE)
    assert "not measurably faster than the dense model (1.35 [0.97, 1.86] times)" in text


def test_an_unknown_value_has_no_text() -> None:
    assert estimate(None) is None and estimate(float("inf"), [1.0, 2.0]) is None


def test_the_sentence_stands_alone() -> None:
    """140 ms dense over 121 ms pruned, 20 samples a side, s = 0.25: 1.33 promised."""
    assert paper_sentence("prefill", phase(), SUBJECT, DEVICE) == (
        "SmolLM2-135M pruned by Ours is 1.157 [1.140, 1.170] times as fast as the dense model; "
        "1.33 promised (s = 0.25, prefill, batch 4, 512 tokens, bf16, AMD EPYC, 2 threads; ratio "
        "of medians, n = 20 unprofiled samples a side; 95 % bootstrap interval)."
    )


def test_a_sentence_claims_nothing_that_is_no_evidence() -> None:
    invalid = Finding(
        id="timing-not-valid",
        severity="critical",
        text="x",
        evidence=[],
        change=None,
        predicted_ns=None,
    )
    text = paper_sentence("prefill", phase(findings=[invalid]), SUBJECT, DEVICE)
    assert text.startswith("No speedup of SmolLM2-135M pruned by Ours is reported (s = 0.25, ")
    assert "1.1" not in text and "batch 4" in text
    ladder = msgspec.structs.replace(phase().ladder, realised_ci95=[0.98, 1.17])
    text = paper_sentence("prefill", phase(ladder=ladder), SUBJECT, DEVICE)
    assert "is not measurably faster than the dense model (1.16 [0.98, 1.17] times)" in text


def test_a_caption_says_nothing_twice() -> None:
    text = caption_words("prefill", phase(), SUBJECT, DEVICE)
    for words in ("n = 20", "samples", "batch 4", "512 tokens", "prefill", "1.157", "2 threads"):
        assert text.count(words) == 1, words


def test_a_report_has_the_sentence_and_its_summary_has_not() -> None:
    for name, measured in report_of("tiny-static-nk").phases.items():
        answer = measured.answer
        assert answer is not None and answer.sentence is not None
        assert name in answer.sentence and "batch" in answer.sentence
        assert measured.summary == summary_of(answer)
        assert answer.sentence not in measured.summary
