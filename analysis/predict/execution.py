"""Why no run reaches the roofline: the expected time term by term, and how sure it is.

In: the dense and the pruned side. Out: an Execution: ns a forward that each term adds on both
sides, the speedup with all of them, its range, and what needs an explanation.
"""

from __future__ import annotations

from collections.abc import Collection

from prunescope.analysis.predict.constants import TABLE
from prunescope.analysis.predict.costs import NAMES, TERMS, cost_estimate
from prunescope.analysis.predict.ranges import Uncertainty, doubt
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import Execution, TermRow
from prunescope.taxonomy.words import percent

_FIGURES = {
    name: "; ".join(c.figure for c in TABLE.values() if c.term == name) or "shapes and SMs alone"
    for name in NAMES
}
_NARROW = 0.02
_SLACK = 1.005  # above the bound by less is rounding


def execution(
    dense: PredictedSide, pruned: PredictedSide, terms: Collection[str] = NAMES
) -> Execution:
    """The expected time of both sides, term by term, and the speedup with its range."""
    rows = []
    active: set[str] = set()
    before = (dense.ns, pruned.ns)
    cost_estimates, c = (cost_estimate(dense), cost_estimate(pruned)), dense.setting.constants
    idle = cost_estimates[0].idle() & cost_estimates[1].idle()
    for term in TERMS:
        if term.name not in terms:
            continue
        active.add(term.name)
        now = frozenset(active)
        after = before
        if term.name not in idle:
            after = (cost_estimates[0].total_ns(c, now), cost_estimates[1].total_ns(c, now))
        rows.append(
            TermRow(
                name=term.name,
                dense_ns=after[0] - before[0],
                pruned_ns=after[1] - before[1],
                mechanism=term.mechanism,
                figure=_FIGURES[term.name],
            )
        )
        before = after
    value = before[0] / before[1]
    found = doubt(dense, pruned, terms)
    return Execution(
        launch=dense.setting.launch,
        terms=rows,
        dense_ns=before[0],
        pruned_ns=before[1],
        speedup=value,
        range=found.around(value),
        guessed=list(found.guessed),
        notes=_notes(before, found),
        above_roofline=_above(dense, pruned, before),
    )


def _above(dense: PredictedSide, pruned: PredictedSide, ns: tuple[float, float]) -> str | None:
    """Why a speedup is above that of the rooflines; None where it is not."""
    if ns[0] / ns[1] <= dense.ns / pruned.ns * _SLACK:
        return None
    far = [time / side.ns for time, side in zip(ns, (dense, pruned), strict=True)]
    return f"above it: dense takes {far[0]:.2f} of its roofline, pruned {far[1]:.2f}"


def _notes(ns: tuple[float, float], found: Uncertainty) -> list[str]:
    """What a reader would doubt: a range that looks too good."""
    notes, value = [], ns[0] / ns[1]
    low, high = found.around(value)
    if high / value - 1 < _NARROW or 1 - low / value < _NARROW:
        same = 1 - found.unlike.share
        notes.append(
            f"the range is narrow because {percent(same)} of the time left is in kernels that run "
            "as they do in the dense model: what is not known of them is so on both sides"
        )
    return notes
