"""One value says whether two sides compare, and everybody reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.comparison.differences import pair_comparison
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.pair_comparison import ROWS, Difference, PairComparison
from prunescope.analysis.schema.report import Finding, Phase, Report, from_json, to_json
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.wording.comparison import difference_text, not_comparable_text
from prunescope.rules import check_report, parse_rules
from tests.analysis import run_folder
from tests.analysis.finding_cases import layers, mm, of_pair, plain
from tests.analysis.report import example
from tests.chrome import chrome, k, module, op, step

DTYPE = Difference("dtype", "bfloat16", "float32")
BATCH = Difference("batch", 1, 2, hides_pruning=True)
ROWS_2 = Difference(ROWS, 1, 2.0, hides_pruning=True)


@pytest.mark.parametrize(
    ("differences", "rows", "speedup", "pruning", "bounds"),
    [
        ([], None, True, True, True),
        ([DTYPE], None, False, True, True),  # other numbers, but the shapes are the pruning's
        ([BATCH], None, False, False, False),
        ([DTYPE, BATCH], None, False, False, False),
        ([], ROWS_2, False, False, True),  # every linear sees twice the rows
    ],
)
def test_what_may_still_be_said(
    differences: list[Difference],
    rows: Difference | None,
    *,
    speedup: bool,
    pruning: bool,
    bounds: bool,
) -> None:
    comparison = pair_comparison(differences, inputs=rows)
    assert (comparison.is_speedup, comparison.shows_pruning, comparison.has_bounds) == (
        speedup,
        pruning,
        bounds,
    )
    assert len(comparison.differences) == len(differences) + (rows is not None)


def test_words() -> None:
    assert difference_text(BATCH) == "batch: 1 dense, 2 pruned"
    assert not_comparable_text(BATCH) == (
        "not comparable: batch is 2, that of the dense run 1: other inputs"
    )
    (rows,) = pair_comparison([], inputs=ROWS_2).differences
    assert difference_text(rows) == (
        "M of every linear is 2 × the dense one: other inputs (batch or length)"
    )


def test_a_pair_in_which_nothing_pairs_promises_nothing(tmp_path: Path) -> None:
    """Modules of other roles: four GEMMs of 100 us that pair with none of 50 us."""
    pruned = chrome(step(0, *[module("lm_head", mm(us=50)) for _ in range(2)]))
    for sparsity in (None, 0.5):
        phase = of_pair(tmp_path, plain(), pruned, sparsity)
        assert "nothing pairs: matrices are multiplied in 4 layers and roles of the" in headline(
            phase
        )
        assert phase.ladder is not None
        bounds = phase.ladder.nominal, phase.ladder.coverage, phase.ladder.roofline
        assert bounds == (None, None, None)
        rows = {row.row: row.ns for row in phase.ledger or []}
        assert rows["promised"] == rows["dense"] == 400_000
        assert rows["added_work"] == 100_000


@pytest.mark.parametrize("marked_is_dense", [True, False])
def test_a_whole_trace_against_several_steps_is_no_speedup(
    tmp_path: Path, *, marked_is_dense: bool
) -> None:
    """Three steps of 100 us against three GEMMs of 100 us, of which nothing says what a step is:
    100 us a step against 300 us."""
    marked = chrome(*[step(i, mm()) for i in range(3)])
    whole = chrome(mm(), mm(), mm())
    sides = (marked, whole) if marked_is_dense else (whole, marked)
    phase = of_pair(tmp_path, *sides)
    assert phase.comparison is not None and not phase.is_speedup
    assert not phase.comparison.shows_pruning
    text = "3 against 1 (whole trace)" if marked_is_dense else "1 (whole trace) against 3"
    assert f"is no speedup: not comparable (steps: {text}" in headline(phase)


def test_one_step_compares_with_a_whole_trace(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, chrome(step(0, mm())), chrome(mm()))
    assert phase.is_speedup


def own_decode(tmp_path: Path, keys: int, **fields: Any) -> Phase:
    """A step of one token of a user's own loop, whose cache held 256 keys, against one with fewer:
    the run says nothing of the prompt."""

    def trace(num: int) -> dict[str, Any]:
        q, kv = [1, 4, 1, 64], [1, 4, num, 64]
        attention = op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [],
                       dtype="c10::BFloat16", kernels=[k(us=20, name="flash_fwd")])  # fmt: skip
        return layers(("self_attn", attention), ("mlp.up_proj", mm(m=1)))

    def told(num: int, **more: Any) -> dict[str, Any]:
        here = {"prompt_len": 1, "tokens_per_step": 1, "positions": [num - 1, num], "context": num}
        return {"phase_fields": {**here, **more}}

    folder = run_folder.write_pair(
        tmp_path / "r",
        trace(257),
        trace(keys),
        phase="decode",
        dense_run=told(257),
        pruned_run=told(keys, **fields),
    )
    return analyze(folder).report.phases["decode"]


def test_fewer_keys_alone_in_a_loop_of_ones_own_compare(tmp_path: Path) -> None:
    """257 keys against 129, as a cache that was cut leaves them."""
    phase = own_decode(tmp_path, 129)
    assert phase.is_speedup and phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("kv-evict", 0.5)
    assert "(257 → 129), no linear moved: they left the cache, if both" in headline_and_family(
        phase
    )


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        (300, {}),  # more keys: nothing was evicted
        (255, {}),  # two steps earlier in one generation
        (129, {"batch": 2}),  # another batch too
        (129, {"prompt_len": 128}),  # a run that knows its prompt: another prompt
    ],
)
def test_another_context_of_other_causes_does_not(
    keys: int, fields: dict[str, Any], tmp_path: Path
) -> None:
    phase = own_decode(tmp_path, keys, **fields)
    assert not phase.is_speedup and "context: 257 dense" in str(phase.findings)


def headline_and_family(phase: Phase) -> str:
    return f"{headline(phase)}. {phase.family.evidence[0] if phase.family else ''}"


def compared(comparison: PairComparison | None, *findings: str) -> Report:
    report = example.two_phases()
    report.phases["prefill"].comparison = comparison
    report.phases["prefill"].findings = [
        Finding(id=name, severity="critical", text="", evidence=["batch: 1 dense, 2 pruned"],
                change=None, predicted_ns=None)
        for name in findings
    ]  # fmt: skip
    return from_json(to_json(report))


@pytest.mark.parametrize(
    ("report", "speedup"),
    [
        (compared(pair_comparison([])), True),
        (compared(pair_comparison([DTYPE]), "not-comparable"), False),
        (compared(None), True),  # a report that was written without a comparison
        (compared(None, "not-comparable"), False),
    ],
)
def test_headline_and_check_agree(report: Report, *, speedup: bool) -> None:
    phase = report.phases["prefill"]
    assert phase.is_speedup == speedup
    assert ("is no speedup: not comparable" in headline(phase)) == (not speedup)
    rules = ["prefill.realised >= 1.1", "prefill.ledger.coverage <= 1s", "prefill.nominal >= 1",
             "prefill.wall <= 1s", "prefill.family == static-nk"]  # fmt: skip
    states = [
        rule_verdict.state for rule_verdict in check_report(report, parse_rules(rules)).verdicts
    ]
    assert states == ["held" if speedup else "undecided"] * 2 + ["held"] * 3


def test_check_names_what_differs() -> None:
    checked = check_report(compared(pair_comparison([DTYPE, BATCH])), parse_rules(["realised > 1"]))
    assert checked.verdicts[0].why == "dense and pruned do not compare (other dtype, batch)"


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        ({"warmup": 0}, "warmup"),
        ({"attention": "eager"}, "attention"),
        ({"flush_bytes": 1 << 20}, "flush"),
    ],
)
def test_runs_of_two_settings_are_no_speedup(
    tmp_path: Path, phase: dict[str, Any], kind: str
) -> None:
    folder = run_folder.write_pair(
        tmp_path / "r", plain(), plain(), dense_run={"phase_fields": phase}
    )
    found = analyze(folder).report.phases["prefill"]
    assert found.comparison is not None and not found.is_speedup
    assert [difference.kind for difference in found.comparison.differences] == [kind]


def test_a_baseline_of_fewer_threads_is_no_speedup(tmp_path: Path) -> None:
    folder = run_folder.write_pair(tmp_path / "r", plain(), plain())
    for side, threads in (("dense", 1), ("pruned", 8)):
        path = folder / side / "run.json"
        told = json.loads(path.read_text())
        told["device"] |= {"kind": "cpu", "threads": threads}
        path.write_text(json.dumps({**told, "twin": None}))
    found = analyze(folder / "pruned", baseline=folder / "dense").report.phases["prefill"]
    assert found.comparison is not None and not found.is_speedup
    (difference,) = found.comparison.differences
    assert (difference.kind, difference.dense, difference.pruned) == ("threads", 1, 8)
