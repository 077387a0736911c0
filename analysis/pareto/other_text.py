"""The points of a sweep by their loss on the text that no training saw.

In: a Pareto with its points. Out: the same points and cells with those losses, and their winners.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import asdict, replace

from prunescope.analysis.pareto.frontier import frontier, winners
from prunescope.analysis.schema.pareto import Loss, Pareto, ParetoPhase, SweepCell, SweepPoint


def on_other_text(found: Pareto) -> Pareto | None:
    """A copy in which the losses are those on the other text; None where there is none. Points
    that were not judged on it are left out."""
    phases = {name: _phase(phase) for name, phase in found.phases.items()}
    judged = {name: phase for name, phase in phases.items() if phase.points}
    return replace(found, phases=judged) if judged else None


def _phase(phase: ParetoPhase) -> ParetoPhase:
    points = list(_points(phase))
    return replace(phase, points=points, cells=[_cell(cell, points) for cell in phase.cells])


def _points(phase: ParetoPhase) -> Iterator[SweepPoint]:
    for point in phase.points:
        other = point.loss.other_text if point.loss else None
        if other is not None:
            yield replace(point, loss=Loss(**asdict(other)), on_frontier=False)


def _cell(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
    where = (cell.batch, cell.prompt_len)
    best = frontier(p for p in points if (p.batch, p.prompt_len) == where)
    return replace(cell, winners=winners(best, batch=cell.batch, prompt_len=cell.prompt_len))
