"""The registry of findings, and what is derived from it: order, conditions, docs/findings.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis import findings
from prunescope.analysis.findings import registry
from prunescope.analysis.findings.registry import (
    FINDINGS,
    MODULES,
    OLD_IDS,
    Registered,
    current_id,
    registered,
)
from prunescope.analysis.pipeline import analyze

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "findings.md"


def conditions(rule: Registered) -> str:
    """Say when a finding does not apply, or is no more than a warning."""
    needs = {
        "valid times": rule.needs_valid_times,
        "one clock of host and device": rule.needs_one_clock,
        "runs that show the pruning": rule.compares,
        "several ranks": rule.reads == "ranks",
    }
    return ", ".join(name for name, is_needed in needs.items() if is_needed) or "–"


def rows() -> list[str]:
    """Return the rows of the table in docs/findings.md."""
    return [
        f"| `{rule.id}` | {rule.severity} | {rule.summary} | {conditions(rule)} |"
        for rule in registered()
    ]


def test_the_page_of_findings_has_a_row_for_each(pytestconfig: pytest.Config) -> None:
    """`pytest --update-golden` writes it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    head = lines.index("|---|---|---|---|") + 1
    if pytestconfig.getoption("--update-golden"):
        PAGE.write_text("\n".join([*lines[:head], *rows()]) + "\n", encoding="utf-8")
        return
    assert lines[head:] == rows()


def test_every_module_with_a_finding_is_imported() -> None:
    folder = Path(str(findings.__file__)).parent
    decorated = {p.stem for p in folder.glob("*.py") if "\n@finding(" in p.read_text("utf-8")}
    assert decorated == set(MODULES)


def test_findings_are_ordered_by_module_and_line() -> None:
    ids = [rule.id for rule in registered()]
    assert sorted(ids) == sorted(FINDINGS)
    assert ids[:3] == ["truncated-trace", "not-comparable", "captured-step"]
    assert ids[-3:] == ["largest-cost", "straggler", "rank-does-more"]


def test_what_a_finding_declares_fits_together() -> None:
    for rule in registered():
        docstring = rule.check.__doc__ or ""
        assert docstring.startswith("Report that "), rule.id
        assert docstring.partition("\n")[0].endswith("."), rule.id
        assert rule.check.__name__ == rule.id.replace("-", "_"), rule.id
        assert rule.severity != "info" or not rule.needs_valid_times, rule.id


def test_a_registry_without_its_findings_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that replaces the registry before the modules are imported leaves it empty after."""
    registered()
    monkeypatch.setattr(registry, "FINDINGS", {})
    report = analyze(ROOT / "traces" / "tiny-static-m").report
    assert not any(phase.findings for phase in report.phases.values())


def test_old_ids_lead_to_findings_of_today() -> None:
    assert OLD_IDS.keys().isdisjoint(FINDINGS)
    assert set(OLD_IDS.values()) <= FINDINGS.keys()
    assert current_id("spill") == "carry-over"
    assert current_id("cut-off") == "truncated-trace"
    assert current_id("no-speedup") == "no-speedup"
