"""The figures of a report one by one, for notebooks: in, a Report; out, matplotlib Figures."""

from __future__ import annotations

from typing import NoReturn

from matplotlib.figure import Figure

from prunescope.analysis.report import anatomy_figures, figures
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.errors import PrunescopeError, nearest


class Plots:
    """The figures of a report. Each takes a phase, the first one where none is named, and gives a
    matplotlib Figure; PrunescopeError where the phase has nothing to draw."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __getattr__(self, name: str) -> NoReturn:
        known = [one for one in vars(Plots) if not one.startswith("_")]
        raise AttributeError(f"there is no plot {name!r}; nearest: {nearest(name, known, count=2)}")

    def ladder(self, phase: str | None = None) -> Figure:
        """Speedups, from the promise to what was measured."""
        return self._drawn("ladder", phase)

    def ledger(self, phase: str | None = None) -> Figure:
        """Where the time went, as a waterfall."""
        return self._drawn("ledger", phase)

    def kinds(self, phase: str | None = None) -> Figure:
        """Busy time by kind."""
        return self._drawn("kinds", phase)

    def roofline(self, phase: str | None = None) -> Figure:
        """Calls under the ceilings of the device."""
        return self._drawn("roofline", phase)

    def bounds(self, phase: str | None = None) -> Figure:
        """Time by kind and bound."""
        return self._drawn("bounds", phase)

    def layers(self, phase: str | None = None) -> Figure:
        """Time of each layer by role."""
        return self._drawn("layers", phase)

    def waves(self, phase: str | None = None) -> Figure:
        """Predicted time over N, with the dimensions that ran."""
        return self._drawn("waves", phase)

    def _drawn(self, kind: str, phase: str | None) -> Figure:
        phases = self._report.phases
        name = next(iter(phases), "") if phase is None else phase
        if name not in phases:
            raise PrunescopeError(
                f"the report has no phase {name!r}", hint=f"nearest: {nearest(name, phases)}"
            )
        figure = draw(self._report, name, kind)
        if figure is None:
            raise PrunescopeError(
                f"{name} has no {kind} to draw",
                hint="a ladder and a ledger need a baseline, a roofline the peaks of the device",
            )
        return figure


def draw(report: Report, phase: str, kind: str) -> Figure | None:
    """A figure by its kind; None where the phase has nothing to draw in it."""
    one = report.phases[phase]
    has = {"ladder": one.ladder is not None, "ledger": bool(one.ledger), "kinds": bool(one.kinds)}
    if kind in anatomy_figures.KINDS:
        return anatomy_figures.draw(report, phase, kind)
    return figures.draw(report, phase, kind) if has[kind] else None
