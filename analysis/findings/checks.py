"""All findings of a phase: the results of every registered function, sorted.

In: a Context. Out: Findings of the report, by `Finding.order`, then as registered.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import SEVERITIES, Found, Registered, registered
from prunescope.analysis.schema.report import INVALID_TIMES, NOT_VALID, SIDE_CAVEATS, Finding
from prunescope.taxonomy.repairs import repairs_of


def find(context: Context) -> list[Finding]:
    """Find all that is worth knowing about a phase.

    Args:
        context: The phase of the candidate and, where there is one, of its baseline.

    Returns:
        The findings in their order. No gain is predicted from times or shapes that may be wrong.
    """
    rules = registered()
    invalid = (rule.check(context) for rule in rules if rule.id == NOT_VALID)
    context = replace(context, is_disturbed=next(invalid, None) is not None)
    applicable = [
        rule
        for rule in rules
        if not (rule.compares and not context.phase.shows_pruning)
        # Idle time is meaningless during graph capture.
        and not (rule.needs_one_clock and context.kernels.is_captured)
    ]
    results = list(_check(applicable, context, reads="phase"))
    explained = frozenset[str]().union(*(result.explains_roles for _, result in results))
    results += _check(applicable, replace(context, explained=explained), reads="findings")
    ids = {rule.id for rule, _ in results}
    times_are_valid = INVALID_TIMES.isdisjoint(ids)
    findings = []
    for rule, result in results:
        finding = as_finding(rule, result)
        if rule.needs_valid_times and not times_are_valid:
            weaker = SEVERITIES[min(SEVERITIES.index(rule.severity) + 1, len(SEVERITIES) - 1)]
            finding.severity = max(finding.severity, weaker, key=SEVERITIES.index)
        if rule.needs_one_clock and context.kernels.profiler.clock_skew is not None:
            # Neither a critical severity nor a gain may rest on clocks that differ.
            finding.severity = max(finding.severity, "warning", key=SEVERITIES.index)
            finding.evidence.insert(0, "unreliable: host and device clocks are skewed")
            finding.predicted_ns = None
        findings.append(finding)
    if not times_are_valid or not SIDE_CAVEATS.isdisjoint(ids):
        for finding in findings:
            finding.predicted_ns = None
    return sorted(findings, key=lambda finding: finding.order)


def _check(
    rules: Iterable[Registered], context: Context, *, reads: str
) -> Iterable[tuple[Registered, Found]]:
    for rule in rules:
        if rule.reads == reads and (result := rule.check(context)) is not None:
            yield rule, result


def _about_ns(result: Found) -> float | None:
    """Return the time that a result is about: as it says, else its gain, else what it explains."""
    if result.about_ns is not None:
        return result.about_ns
    explained = sum(map(abs, result.explains_rows_ns.values()))
    return result.predicted_ns or explained or None


def as_finding(rule: Registered, result: Found) -> Finding:
    """Return the report's Finding of what a registered function returned."""
    return Finding(
        id=rule.id,
        severity=result.severity or rule.severity,
        text=result.text,
        evidence=result.evidence,
        change=result.change,
        also=list(result.also) or msgspec.UNSET,
        allocate=result.allocate or msgspec.UNSET,
        predicted_ns=result.predicted_ns,
        about_ns=_about_ns(result),
        accounts_for=result.explains_rows_ns or msgspec.UNSET,
        rows=msgspec.UNSET if result.rows is None else result.rows,
        repairs=[repair.id for repair in repairs_of(rule.id)] or msgspec.UNSET,
        roles=sorted(result.explains_roles) or msgspec.UNSET,
    )
