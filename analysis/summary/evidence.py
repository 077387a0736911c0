"""Why times or losses that are shown are no evidence.

In: a Phase, a row of a Comparison or a point of a sweep. Out: the reasons, the most severe first;
empty where there is none. Tables mark, and figures hatch, what they show by the first reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunescope.analysis.schema.comparison import ComparisonRow
from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.schema.report import (
    ARITHMETIC,
    CAPTURED,
    CUT_OFF,
    MEASURED,
    NOT_VALID,
    Phase,
)
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

NO_STEP, CUT = "no step was timed", "a trace is cut off"
NOT_COMPARABLE, NOT_VALID_TIMING = "sides not comparable", "timing not valid"
ONE_STEP, NO_INTERVAL = "one step: no interval", "no interval"
# Reasons by which a time does not show how long a step takes.
INVALID = (NO_STEP, CUT, NOT_VALID_TIMING)


def phase_reasons(phase: Phase) -> list[str]:
    """Return why the speedup of a phase, or its time without a baseline, is no evidence."""
    if phase.ladder is not None and phase.ladder.realised_ci95 is None:
        return [*_time_reasons(phase), _missing_interval(phase)]
    return _time_reasons(phase)


def ledger_reasons(phase: Phase) -> list[str]:
    """Return why the rows of a ledger are no evidence.

    Rows may have intervals where the speedup has none, or none where it has one.
    """
    if phase.ledger and not any(row.ci95 for row in phase.ledger):
        return [*_time_reasons(phase), _missing_interval(phase)]
    return _time_reasons(phase)


def ledger_invalid_reasons(phase: Phase) -> list[str]:
    """Return the reasons by which no row of a ledger is evidence; empty where some may be."""
    return [reason for reason in ledger_reasons(phase) if reason in INVALID]


def bound_reasons(phase: Phase) -> dict[str, list[str]]:
    """Return why each bar of a ladder is no evidence, by its name.

    Bounds that rest on the dense times are no evidence where these are not; they hold where the
    sides do not compare. Arithmetic needs no times.
    """
    ladder = phase.ladder
    if ladder is None:
        return {}
    reasons: dict[str, list[str]] = {name: [] for name in sorted(ARITHMETIC)}
    for name in ("coverage", "roofline", *sorted(MEASURED)):
        reasons[name] = [
            reason
            for reason in _time_reasons(phase)
            if name in MEASURED or reason != NOT_COMPARABLE
        ]
        if ladder.interval_of(name) is None:
            reasons[name].append(_missing_interval(phase))
    return reasons


def _time_reasons(phase: Phase) -> list[str]:
    """Return the reasons that all times of a phase share."""
    ids = {finding.id for finding in phase.findings}
    return _holding(
        {
            NO_STEP: CAPTURED in ids,
            CUT: CUT_OFF in ids,
            NOT_COMPARABLE: not phase.is_speedup,
            NOT_VALID_TIMING: NOT_VALID in ids,
            RANDOM_IDS: phase.token_ids == RANDOM_IDS,
        }
    )


def _missing_interval(phase: Phase) -> str:
    """Return why there is no interval: because of one step or sample, or for another reason."""
    samples = phase.unprofiled_ns.samples if phase.unprofiled_ns else ()
    return ONE_STEP if max(phase.steps, len(samples)) == 1 else NO_INTERVAL


def row_reasons(row: ComparisonRow) -> list[str]:
    """Return why the times of a row of a comparison are no evidence."""
    return _holding(
        {
            NO_STEP: CAPTURED in row.critical,
            CUT: CUT_OFF in row.critical,
            NOT_COMPARABLE: not row.comparable,
            NOT_VALID_TIMING: NOT_VALID in row.critical,
            RANDOM_IDS: row.token_ids == RANDOM_IDS,
            NO_INTERVAL: row.ladder is not None and row.ladder.realised_ci95 is None,
        }
    )


def point_reasons(point: SweepPoint) -> list[str]:
    """Return why the time of a point of a sweep is no evidence."""
    return _holding(
        {NOT_VALID_TIMING: not point.timing_valid, NO_INTERVAL: point.realised_ci95 is None}
    )


def _holding(reasons: Mapping[str, bool]) -> list[str]:
    return [reason for reason, holds in reasons.items() if holds]
