"""Why times or losses that are shown are no evidence, and the hatch or mark that says so.

In: a Phase, a row of a Comparison or a point of a sweep. Out: the reasons, most severe first; empty
where there is none. Every figure hatches what it shows by the first, and its legend names it.
Tables and figures mark points that are simulated or do the dense work behind their names.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.analysis.report import sentences
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
EARLIER_WORK = "holds earlier work, most likely"
ONE_STEP, NO_INTERVAL = "one step: no interval", "no interval"
# Those by which a time is no evidence of how long a step takes.
INVALID = (NO_STEP, CUT, NOT_VALID_TIMING, EARLIER_WORK)
# In grey, and with strokes of their own: figures use other hatches for what takes the time.
HATCHES = {
    NO_STEP: "xxxx",
    CUT: "xxxx",
    NOT_COMPARABLE: "||||",
    NOT_VALID_TIMING: "xxxx",
    EARLIER_WORK: "xxxx",
    RANDOM_IDS: "oo",
    ONE_STEP: "----",
    NO_INTERVAL: "----",
}

# The same strokes in HTML, by the names of their classes.
STROKES = {"xxxx": "crossed", "||||": "upright", "oo": "dotted", "----": "level"}
SIMULATED, ZEROS = "*", "†"
MARKS = {SIMULATED: "simulated", ZEROS: "zeros or nothing: the dense work"}


def of_phase(phase: Phase) -> list[str]:
    """The reasons of a phase of a report."""
    ladder = phase.ladder
    none = ladder is not None and ladder.realised_ci95 is None
    return _of_times(phase) + _no_interval(phase) * none


def of_ledger(phase: Phase) -> list[str]:
    """Those of the rows of its ledger, which may have intervals where the speedup has none, or none
    where it has one."""
    rows = phase.ledger or ()
    none = bool(rows) and not any(row.ci95 for row in rows)
    return _of_times(phase) + _no_interval(phase) * none


def why_no_row(phase: Phase) -> list[str]:
    """Those by which no row of its ledger is evidence; empty where some may be."""
    return [why for why in of_ledger(phase) if why in INVALID]


def of_bounds(phase: Phase) -> dict[str, list[str]]:
    """Those of each bar of its ladder. Bounds that rest on the dense times are no evidence where
    these are not; they hold where the sides do not compare. Arithmetic needs no times."""
    ladder = phase.ladder
    if ladder is None:
        return {}
    found = {}
    for name in (*sorted(ARITHMETIC), "coverage", "roofline", *sorted(MEASURED)):
        reasons = [] if name in ARITHMETIC else _of_times(phase)
        if name not in MEASURED:
            reasons = [why for why in reasons if why != NOT_COMPARABLE]
        if name not in ARITHMETIC and ladder.interval_of(name) is None:
            reasons += _no_interval(phase)
        found[name] = reasons
    return found


def _of_times(phase: Phase) -> list[str]:
    """The reasons that all times of a phase share."""
    found = {finding.id for finding in phase.findings}
    reasons = [NO_STEP] * bool(sentences.captured(phase)) + [CUT] * (CUT_OFF in found)
    reasons += [NOT_COMPARABLE] * (not phase.is_speedup)
    reasons += [NOT_VALID_TIMING] * (NOT_VALID in found)
    reasons += [EARLIER_WORK] * sentences.holds_earlier_work(phase)
    return reasons + [RANDOM_IDS] * (phase.token_ids == RANDOM_IDS)


def _no_interval(phase: Phase) -> list[str]:
    samples = phase.unprofiled_ns.samples if phase.unprofiled_ns else ()
    return [ONE_STEP if max(phase.steps, len(samples)) == 1 else NO_INTERVAL]


def of_row(row: ComparisonRow) -> list[str]:
    """The reasons of a row of a comparison."""
    reasons = [NO_STEP] * (CAPTURED in row.critical) + [CUT] * (CUT_OFF in row.critical)
    reasons += [NOT_COMPARABLE] * (not row.comparable)
    reasons += [NOT_VALID_TIMING] * (NOT_VALID in row.critical)
    reasons += [RANDOM_IDS] * (row.token_ids == RANDOM_IDS)
    return reasons + [NO_INTERVAL] * (row.ladder is not None and row.ladder.realised_ci95 is None)


def of_point(point: SweepPoint) -> list[str]:
    """The reasons of the time of a point of a sweep."""
    reasons = [NOT_VALID_TIMING] * (not point.timing_valid)
    return reasons + [NO_INTERVAL] * (point.realised_ci95 is None)


def first_reasons(every: Iterable[list[str]]) -> list[str]:
    """The reasons by which something is hatched, in the order of HATCHES."""
    used = {reasons[0] for reasons in every if reasons}
    return [reason for reason in HATCHES if reason in used]


def with_further_reasons(every: Iterable[list[str]]) -> dict[str, str]:
    """Every reason by which something is hatched, in the order of HATCHES, with the words of a
    legend: that reason, and the further ones of what is hatched by it, whether of all or some."""
    groups: dict[str, list[list[str]]] = {}
    for reasons in every:
        if reasons:
            groups.setdefault(reasons[0], []).append(reasons)
    return {
        first: ", ".join([first, *_further(groups[first])]) for first in HATCHES if first in groups
    }


def _further(group: list[list[str]]) -> Iterable[str]:
    for reason in HATCHES:
        having = [reason in reasons[1:] for reasons in group]
        if any(having):
            yield reason if all(having) else f"some {reason}"


def marks_of_point(point: SweepPoint) -> str:
    """`*` of a simulated point, `†` of one that does the dense work."""
    return SIMULATED * (point.simulated is not None) + ZEROS * point.removed_nothing


def marked(name: str, *points: SweepPoint) -> str:
    """A name with the marks of its points, each once."""
    found = "".join(map(marks_of_point, points))
    marks = "".join(mark for mark in MARKS if mark in found)
    return f"{name} {marks}" if marks else name
