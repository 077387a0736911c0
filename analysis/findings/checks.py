"""All findings of a phase: the results of every registered function, sorted.

In: a Context. Out: Findings of the report, most severe first, then by gain, then as registered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import (
    SEVERITIES,
    Found,
    Registered,
    Severity,
    registered,
)
from prunescope.analysis.schema.report import INVALID_TIMES, NOT_VALID, SIDE_CAVEATS, Finding


def find(context: Context) -> list[Finding]:
    """All findings of a phase, most severe first."""
    known = registered()
    disturbed = next(one.check(context) for one in known if one.id == NOT_VALID)
    context = replace(context, is_disturbed=disturbed is not None)
    applicable = [
        one
        for one in known
        if not (one.compares and not context.phase.shows_pruning)
        # Idle time is meaningless during graph capture.
        and not (one.needs_one_clock and context.kernels.is_captured)
    ]
    found = list(_ask(applicable, context, reads="phase"))
    explained = frozenset[str]().union(*(answer.explains_roles for _, answer in found))
    found += _ask(applicable, replace(context, explained=explained), reads="findings")
    times_are_valid = INVALID_TIMES.isdisjoint(one.id for one, _ in found)
    findings = []
    for one, answer in found:
        finding = as_finding(one, answer)
        if one.needs_valid_times and not times_are_valid:
            _lower(finding, below=one.severity)
        if one.needs_one_clock and context.kernels.profiler.clock_skew is not None:
            _mark_unreliable(finding)
        findings.append(finding)
    rank: dict[str, int] = {severity: i for i, severity in enumerate(SEVERITIES)}
    sides_are_uncertain = not SIDE_CAVEATS.isdisjoint(one.id for one, _ in found)
    findings.sort(
        key=lambda f: (rank[f.severity], f.id not in SIDE_CAVEATS, -(f.predicted_ns or 0))
    )
    if not times_are_valid or sides_are_uncertain:
        for finding in findings:
            finding.predicted_ns = (
                None  # no gain can be read from times or shapes that may be wrong
            )
    return findings


def _ask(
    checks: Iterable[Registered], context: Context, *, reads: str
) -> Iterable[tuple[Registered, Found]]:
    for one in checks:
        if one.reads == reads and (answer := one.check(context)) is not None:
            yield one, answer


def as_finding(one: Registered, found: Found) -> Finding:
    """The report's Finding of what a function returned."""
    return Finding(
        id=one.id,
        severity=found.severity or one.severity,
        text=found.text,
        evidence=found.evidence,
        change=found.change,
        predicted_ns=found.predicted_ns,
        accounts_for=found.explains_rows_ns or msgspec.UNSET,
        rows=msgspec.UNSET if found.rows is None else found.rows,
    )


def _lower(finding: Finding, *, below: Severity) -> None:
    """A finding that rests on measured times is at most one below its registered severity where
    these are not valid."""
    highest = min(SEVERITIES.index(below) + 1, len(SEVERITIES) - 1)
    if SEVERITIES.index(finding.severity) < highest:
        finding.severity = SEVERITIES[highest]


def _mark_unreliable(finding: Finding) -> None:
    """Nothing critical and no predicted gain rests on clocks that differ."""
    if finding.severity == "critical":
        finding.severity = "warning"
    finding.evidence.insert(0, "unreliable: host and device clocks are skewed")
    finding.predicted_ns = None
