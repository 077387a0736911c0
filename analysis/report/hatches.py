"""The hatch or mark that says why what is shown is no evidence.

In: the reasons of summary/evidence.py, or points of a sweep. Out: hatches, texts of legends and
marks. A figure hatches what it shows by its first reason, and its legend names that. Tables and
figures mark points that are simulated, or that do the dense work behind their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.summary.evidence import (
    CUT,
    NO_INTERVAL,
    NO_STEP,
    NOT_COMPARABLE,
    NOT_VALID_TIMING,
    ONE_STEP,
)
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

# In grey, and with strokes of their own: figures use other hatches for what takes the time.
HATCHES = {
    NO_STEP: "xxxx",
    CUT: "xxxx",
    NOT_COMPARABLE: "||||",
    NOT_VALID_TIMING: "xxxx",
    RANDOM_IDS: "oo",
    ONE_STEP: "----",
    NO_INTERVAL: "----",
}
# The same strokes in HTML, by the names of their classes.
STROKES = {"xxxx": "crossed", "||||": "upright", "oo": "dotted", "----": "level"}
SIMULATED, ZEROS = "*", "†"
MARKS = {SIMULATED: "simulated", ZEROS: "zeros or nothing: the dense work"}


def first_reasons(every: Iterable[list[str]]) -> list[str]:
    """Return the reasons by which something is hatched, in the order of HATCHES."""
    used = {reasons[0] for reasons in every if reasons}
    return [reason for reason in HATCHES if reason in used]


def with_further_reasons(every: Iterable[list[str]]) -> dict[str, str]:
    """Return the text of a legend for each reason by which something is hatched.

    The text names that reason, then the further ones of what is hatched by it: of all, or of some.
    """
    groups: dict[str, list[list[str]]] = {}
    for reasons in every:
        if reasons:
            groups.setdefault(reasons[0], []).append(reasons)
    return {
        first: ", ".join([first, *_further_reasons(groups[first])])
        for first in HATCHES
        if first in groups
    }


def _further_reasons(group: list[list[str]]) -> Iterator[str]:
    for reason in HATCHES:
        having = [reason in reasons[1:] for reasons in group]
        if any(having):
            yield reason if all(having) else f"some {reason}"


def marks_of_point(point: SweepPoint) -> str:
    """Return `*` for a simulated point and `†` for one that does the dense work."""
    marks = {SIMULATED: point.simulated is not None, ZEROS: point.removed_nothing}
    return "".join(mark for mark, holds in marks.items() if holds)


def marked(name: str, *points: SweepPoint) -> str:
    """Return a name with the marks of its points, each once."""
    all_marks = "".join(map(marks_of_point, points))
    marks = "".join(mark for mark in MARKS if mark in all_marks)
    return f"{name} {marks}" if marks else name
