"""The registry of findings, and what is derived from it: order, conditions, docs/findings.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis import findings
from prunescope.analysis.findings.registry import (
    FINDINGS,
    MODULES,
    OLD_IDS,
    Registered,
    current_id,
    registered,
)

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "findings.md"


def conditions(one: Registered) -> str:
    """When a finding does not apply, or is no more than a warning."""
    needs = {
        "valid times": one.needs_valid_times,
        "one clock of host and device": one.needs_one_clock,
        "runs that show the pruning": one.compares,
        "several ranks": one.reads == "ranks",
    }
    return ", ".join(name for name, is_needed in needs.items() if is_needed) or "–"


def rows() -> list[str]:
    """The rows of the table in docs/findings.md."""
    return [
        f"| `{one.id}` | {one.severity} | {one.summary} | {conditions(one)} |"
        for one in registered()
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
    ids = [one.id for one in registered()]
    assert sorted(ids) == sorted(FINDINGS)
    assert ids[:3] == ["truncated-trace", "not-comparable", "captured-step"]
    assert ids[-3:] == ["largest-cost", "straggler", "rank-does-more"]


def test_what_a_finding_declares_fits_together() -> None:
    for one in registered():
        assert one.summary.endswith("."), one.id
        assert one.check.__name__ == one.id.replace("-", "_"), one.id
        assert one.severity != "info" or not one.needs_valid_times, one.id


def test_old_ids_lead_to_findings_of_today() -> None:
    assert OLD_IDS.keys().isdisjoint(FINDINGS)
    assert set(OLD_IDS.values()) <= FINDINGS.keys()
    assert current_id("spill") == "carry-over"
    assert current_id("cut-off") == "truncated-trace"
    assert current_id("no-speedup") == "no-speedup"
