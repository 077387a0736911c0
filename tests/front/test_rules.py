"""`prunescope check`: rules, intervals, exit codes, JUnit."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import prunescope
from prunescope.analysis.findings.registry import OLD_IDS
from prunescope.analysis.schema.pair_comparison import Difference, PairComparison
from prunescope.analysis.schema.report import Finding, Report, to_json
from prunescope.rules import METRICS, check_report, parse_rules
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example


def states(report: Report, *rules: str) -> list[str]:
    return [v.state for v in check_report(report, parse_rules(rules)).verdicts]


@pytest.fixture
def report() -> Report:
    """prefill: realised 1.16 [1.14, 1.17], family static-nk; added work -1.5 of 140 ms."""
    return example.two_phases()


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        ("prefill.realised >= 1.1", "held"),
        ("prefill.realised >= 1.15", "undecided"),  # inside the interval
        ("prefill.realised >= 1.2x", "failed"),
        ("prefill.realised < 1.2", "held"),
        ("prefill.realised == 1.16", "undecided"),
        ("prefill.realised != 2", "held"),
        ("prefill.nominal == 2", "failed"),  # exact: no interval
        ("prefill.busy >= 1.18", "undecided"),  # 1.19 [1.17, 1.20]
        ("prefill.coverage >= 1.25", "failed"),  # 1.23 [1.22, 1.24]
        ("prefill.share_of_bound >= 93%", "held"),  # 95.6 % [94, 97]
        ("decode.share_of_bound >= 98%", "undecided"),  # of a report without: [1.02, 1.1] ÷ 1.05
        ("prefill.ledger.coverage <= 5%", "failed"),  # +6.6 % of dense
        ("prefill.ledger.coverage <= 7%", "held"),
        ("prefill.ledger.coverage <= 9.2ms", "undecided"),
        ("prefill.ledger.coverage <= 1s", "held"),
        ("prefill.family == static-nk", "held"),
        ("prefill.family != static-nk", "failed"),
        ("prefill.findings.critical <= 99", "held"),
        ("prefill.ledger.not_explained <= 1%", "undecided"),  # the ledger has no such row
    ],
)  # fmt: skip
def test_a_rule(report: Report, rule: str, state: str) -> None:
    assert states(report, rule) == [state]


def test_a_rule_without_a_phase_is_one_of_every_phase(report: Report) -> None:
    assert len(states(report, "realised >= 0.1")) == len(report.phases) == 2


def test_a_partial_report_decides_nothing(report: Report) -> None:
    report.partial = True
    assert states(report, "prefill.realised >= 50", "prefill.family == dense") == ["undecided"] * 2


def test_times_that_are_not_valid_decide_nothing(report: Report) -> None:
    report.phases["prefill"].findings = [
        Finding(id="timing-not-valid", severity="critical", text="busy", evidence=[],
                change=None, predicted_ns=None)
    ]  # fmt: skip
    rules = ("prefill.realised >= 1", "prefill.family == static-nk", "prefill.findings == 1")
    assert states(report, *rules) == ["undecided", "held", "held"]
    bounds = ("coverage", "roofline", "busy", "share_of_bound")
    assert set(states(report, *(f"prefill.{bound} >= 0.1" for bound in bounds))) == {"undecided"}
    assert states(report, "prefill.nominal >= 1", "prefill.flop >= 1") == ["held", "held"]
    # A finding that rests on times may be missing for their noise.
    counts = ("findings.no-speedup == 0", "findings.timing-not-valid == 0")
    assert states(report, *(f"prefill.{count}" for count in counts)) == ["undecided", "failed"]


def test_a_finding_on_times_that_do_not_compare_is_not_counted(report: Report) -> None:
    rule = "prefill.findings.no-speedup == 0"
    assert states(report, rule) == ["held"]
    report.phases["prefill"].comparison = PairComparison(
        is_speedup=False, differences=[Difference("dtype", "bf16", "fp32")]
    )
    assert states(report, rule) == ["undecided"]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("prefill.realized >= 1", "nearest: realised"),
        ("realised => 1", "PATH OP VALUE"),
        ("family >= static-nk", "family takes == or !="),
        ("prefill.realised >= 5%", "one of a plain number, x"),
        ("prefill.wall <= 5", "one of ns"),
        ("findings.critcal == 0", "nearest: critical"),
        ("prefill.findings.zeros-in-dens == 0", "nearest: zeros-in-dense"),
        ("train.realised >= 1", "it has prefill, decode"),
        ("family != static-mm", "nearest: static-m"),
        ("prefill.family == static-nk+statik-m", "static-m"),
        ("family != Static-M", "static-m"),
        ("family != static-m+", "nearest"),
        ("sparsity.parameter >= 0.1", "sparsity.parameters"),
        ("ledger.added-work <= 5%", "ledger.added_work"),
        ("static-m == family", "nearest"),
    ],
)
def test_a_mistake_in_a_rule_is_named(report: Report, rule: str, says: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        states(report, rule)
    assert says in error.value.hint


@pytest.mark.parametrize(("old", "new"), OLD_IDS.items())
def test_old_ids_of_findings_are_read(report: Report, old: str, new: str) -> None:
    for stored, asked in product((old, new), repeat=2):
        report.phases["prefill"].findings = [
            Finding(id=stored, severity="info", text="slow", evidence=[], change=None,
                    predicted_ns=None)
        ]  # fmt: skip
        assert states(report, f"prefill.findings.{asked} == 1") == ["held"]


def test_a_number_without_a_unit_that_it_needs(report: Report) -> None:
    with pytest.raises(PrunescopeError, match="peak_memory_bytes needs a unit"):
        states(report, "prefill.peak_memory_bytes < 500000000")
    with pytest.raises(PrunescopeError, match="realised has no unit 'ms'"):
        states(report, "prefill.realised < 5ms")


def test_a_row_that_is_empty_holds_whatever_the_times(report: Report) -> None:
    """Nothing is added: 0 % [0 %, 0 %] at any time. A row of times that cancel is in doubt."""
    phase = report.phases["prefill"]
    phase.findings = [
        Finding(id="timing-not-valid", severity="critical", text="busy", evidence=[],
                change=None, predicted_ns=None)
    ]  # fmt: skip
    row = next(row for row in phase.ledger or [] if row.row == "added_work")
    rules = ("prefill.ledger.added_work <= 5%", "prefill.ledger.added_work > 0%")
    for ns, ci95, wanted in (
        (0, [0.0, 0.0], ["held", "failed"]), (0, [-1e6, 1e6], ["undecided"] * 2),
        (1, [1.0, 1.0], ["undecided"] * 2),
    ):  # fmt: skip
        row.ns, row.ci95 = ns, ci95
        assert states(report, *rules) == wanted


@pytest.mark.parametrize("word", ["dense", "outside", "unknown", "static-nk+static-m"])
def test_every_verdict_can_be_named(report: Report, word: str) -> None:
    assert states(report, f"prefill.family != {word}") == ["held"]


def test_a_report_without_phases_is_no_input(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.phases = {}
    path = tmp_path / "report.json"
    path.write_bytes(to_json(report))
    for rule in ("prefill.realised >= 0.1", "realised >= 0.1", "family != dense"):
        assert prunescope.main(["check", str(path), "-r", rule]) == 2
        assert "has no phase" in capsys.readouterr().err
    with pytest.raises(PrunescopeError, match="nothing to check"):
        prunescope.check(report, require="realised >= 0.1")  # type: ignore[arg-type]


def test_what_was_not_decided_fails_and_is_named(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, told = tmp_path / "report.json", tmp_path / "c.json"
    path.write_bytes(to_json(report))
    sure, open_ = "prefill.realised >= 1.1", "prefill.realised >= 1.15"
    words = ["check", str(path), "-r", sure, "-r", open_, "-r", "peak_memory_bytes <= 1MB"]
    assert prunescope.main([*words, "--json", str(told)]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert f"3 of 4 not decided: {open_}; peak_memory_bytes <= 1MB (prefill);" in shown
    assert json.loads(told.read_text())["undecided"][0] == open_
    assert prunescope.main([*words, "--strict"]) == 3


def test_json_has_the_number_beside_its_text(report: Report) -> None:
    rules = ("prefill.realised >= 1.1", "prefill.ledger.coverage <= 7%", "prefill.family == dense",
             "prefill.findings.critical == 0", "prefill.wall <= 1s")  # fmt: skip
    rows = check_report(report, parse_rules(rules)).to_dict()["verdicts"]
    ladder, wall = report.phases["prefill"].ladder, report.phases["prefill"].unprofiled_ns
    assert ladder is not None and wall is not None
    realised, coverage, family, critical, timed = rows
    assert realised["value"] == ladder.realised
    assert list(realised["ci95"]) == ladder.realised_ci95
    assert coverage["value"] == pytest.approx(0.066, abs=5e-4)
    assert (family["value"], family["ci95"]) == (None, None)
    assert isinstance(critical["value"], float) and critical["ci95"] is None
    assert timed["value"] == wall.median  # ns


def test_every_metric_can_be_asked_for(report: Report) -> None:
    units = {"wall": "1ms", "family": "dense", **{m: "1MB" for m in METRICS if m.endswith("bytes")}}
    units["sparsity.bytes"] = "50%"
    for metric in METRICS:
        value = units.get(metric, "5%" if metric.startswith("ledger.") else "1")
        assert states(report, f"prefill.{metric} != {value}")


def test_the_command(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, junit = tmp_path / "report.json", tmp_path / "check.xml"
    path.write_bytes(to_json(report))

    def run(*words: str) -> int:
        return prunescope.main(["check", str(path), *words])

    sure, open_, bad = (f"prefill.realised >= {v}" for v in (1.1, 1.15, 50))
    assert run("-r", sure) == 0
    assert run("-r", sure, "-r", open_, "--allow-undecided") == 0
    assert run("-r", sure, "-r", open_) == run("-r", sure, "-r", open_, "--strict") == 3
    assert run("-r", bad, "--junit", str(junit), "--json", str(tmp_path / "c.json")) == 3
    assert "FAILED prefill.realised >= 50  is 1.157× [1.14×, 1.17×]" in capsys.readouterr().out
    (case,) = ElementTree.parse(junit).getroot()
    assert case.get("name") == bad and case.find("failure") is not None
    found: dict[str, Any] = json.loads((tmp_path / "c.json").read_text())
    assert found["passed"] is False and found["verdicts"][0]["state"] == "failed"
    assert run("-r", "prefill.realisd > 1") == 2


def test_a_report_of_another_version_is_refused(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {**json.loads(to_json(report)), "schema": 999}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(plain))
    assert prunescope.main(["check", str(path), "-r", "prefill.realised >= 1"]) == 2
    shown = capsys.readouterr().err
    assert "report.json has schema 999; this prunescope reads schema 1" in shown
    assert "written by a newer prunescope" in shown


def test_junit_skips_what_is_undecided(report: Report, tmp_path: Path) -> None:
    path, junit = tmp_path / "report.json", tmp_path / "check.xml"
    path.write_bytes(to_json(report))
    words = ["check", str(path), "-r", "prefill.realised >= 1.15", "--junit", str(junit)]
    assert prunescope.main([*words, "--allow-undecided"]) == 0
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    assert prunescope.main(words) == 3
    assert ElementTree.parse(junit).getroot().get("failures") == "1"


def test_check_in_python(report: Report) -> None:
    found = prunescope.check(report, require="prefill.realised >= 1.1")  # type: ignore[arg-type]
    assert found.passed and found and found.decided


def test_check_takes_what_the_command_takes(report: Report, tmp_path: Path) -> None:
    """`strict` is the default, and also wins over `allow_undecided`."""
    table = tmp_path / "summary.md"
    rule, undecided = "prefill.realised >= 1.1", "prefill.realised >= 1.15"
    kept: Any = report
    assert prunescope.check(kept, require=rule, strict=True, summary=table).passed
    assert table.read_text().startswith("### prunescope check: all rules hold")
    assert prunescope.check(kept, require=[rule, undecided], allow_undecided=True).passed
    both = {"allow_undecided": True, "strict": True}
    assert not prunescope.check(kept, require=[rule, undecided], **both).passed


def test_a_time_without_an_interval_decides_nothing(report: Report) -> None:
    """Three steps a side and no samples; FLOPs are exact. Five steps tell their own time."""
    phase = report.phases["prefill"]
    assert phase.ladder is not None
    phase.ladder.realised_ci95 = phase.ladder.busy_ci95 = None
    phase.unprofiled_ns, phase.steps = None, 3
    for row in phase.ledger or []:
        row.ci95 = None  # its noise alone, of a few ways to split three steps, decides nothing
    rules = ("prefill.realised >= 1.1", "prefill.realised >= 50", "prefill.busy >= 0.1",
             "prefill.wall <= 1s", "prefill.ledger.coverage <= 1s",
             "prefill.flop >= 1.1")  # fmt: skip
    assert states(report, *rules) == ["undecided"] * 5 + ["held"]
    (first, *_) = check_report(report, parse_rules(rules)).verdicts
    assert "no interval" in first.why
    phase.steps, phase.step_ns = 5, [121_000_000] * 5
    assert states(report, *rules[2:4]) == ["undecided", "held"]


def test_a_rate_is_decided_by_the_interval_of_its_time(report: Report) -> None:
    """121 [120.1, 122.2] ms for 512 tokens: 4,190 to 4,263 a second, and 4,231 in the mean."""
    rules = ("prefill.tokens_per_s >= 4189", "prefill.tokens_per_s >= 4200",
             "prefill.tokens_per_s >= 4264")  # fmt: skip
    assert states(report, *rules) == ["held", "undecided", "failed"]
    phase = report.phases["prefill"]
    # Without samples: Student's t of five steps, 2.776 · 1.58 / √5 = 1.96 ms: 4,164 to 4,301.
    phase.unprofiled_ns, phase.steps = None, 5
    phase.step_ns = [119_000_000, 120_000_000, 121_000_000, 122_000_000, 123_000_000]
    assert states(report, "prefill.tokens_per_s >= 4160", *rules[:1]) == ["held", "undecided"]


OTHER = Difference("dtype", "bf16", "fp32")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda phase: setattr(phase.ladder, "realised_ci95", [3.0, 4.0]), "outside of its own"),
        (lambda phase: setattr(phase.ladder, "realised_ci95", [1.17, 1.14]), "not in order"),
        (lambda phase: setattr(phase.ladder, "realised", 1.16), "not the ratio of the two times"),
        (lambda phase: setattr(phase.ladder, "share_of_bound", 0.95), "realised / roofline"),
        (lambda phase: setattr(phase, "gap_ns", 1.0), "do not add up to wall_ns"),
        (lambda phase: setattr(phase, "tokens_per_s", 1e9), "tokens_per_s of both sides"),
        (lambda phase: setattr(phase.ledger[2], "ns", 1.0), "do not add up"),
        (lambda phase: setattr(phase.unprofiled_ns, "median", 120e6), "outside of its own ci95"),
        (lambda phase: setattr(phase.ladder, "realised_ci95", [0.9, 1.2]), "within noise"),
        (
            lambda phase: setattr(phase, "comparison", PairComparison(differences=[OTHER])),
            "comparison says that the sides differ",
        ),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(
    report: Report, tmp_path: Path, change: Callable[[Any], None], says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    phase, path = report.phases["prefill"], tmp_path / "report.json"
    assert phase.baseline is not None
    phase.baseline.wall_ns, phase.unprofiled_ns = 140e6, None
    phase.profiler_overhead_ratio = None
    if says == "outside of its own ci95":
        phase = report.phases["decode"]
        phase.profiler_overhead_ratio = None
    path.write_bytes(to_json(report))
    assert prunescope.main(["check", str(path), "-r", "prefill.nominal >= 1"]) == 0
    change(phase)
    path.write_bytes(to_json(report))
    assert prunescope.main(["check", str(path), "-r", "prefill.nominal >= 1"]) == 2
    told = capsys.readouterr().err
    assert "contradicts itself" in told and says in told


def test_mixed_up_sides_are_no_input(report: Report) -> None:
    report.phases["prefill"].findings.append(
        Finding(id="mislabelled-sides", severity="critical", text="dense and pruned are mixed up",
                evidence=[], change="rename", predicted_ns=None)
    )  # fmt: skip
    with pytest.raises(PrunescopeError, match="mixed up"):
        states(report, "prefill.nominal >= 1")


def test_no_gate_passes_on_what_a_report_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a dense one has no speedup and no family; one rule on what it has is enough."""
    alone = example.two_phases()
    for phase in alone.phases.values():
        phase.ladder = phase.ledger = phase.family = None
    path = tmp_path / "report.json"
    path.write_bytes(to_json(alone))
    lacking = ["-r", "realised >= 1.0", "-r", "family != dense", "-r", "ledger.coverage <= 1ms"]
    assert prunescope.main(["check", str(path), *lacking]) == 3
    assert "realised is not known" in capsys.readouterr().out
    lacking.append("--allow-undecided")
    assert prunescope.main(["check", str(path), *lacking]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no rule can be checked: realised is not known; family is not known" in told
    assert "hint: compare with the dense run: --baseline" in told
    assert prunescope.main(["check", str(path), *lacking, "-r", "wall <= 1000s"]) == 0
