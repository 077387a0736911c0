"""Everything that is computed from the points of a sweep alone: cells, frontier, winners, claims,
sentences.

In: a Pareto with its points, and cells with the times of the dense model. Out: the whole Pareto.
The same points give the same answer, whether they come from runs or from a stored pareto.json.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.pareto import frontier
from prunescope.analysis.pareto.claims import hypotheses
from prunescope.analysis.pareto.samples import (
    NUM_SAMPLES,
    SEED,
    add_frontier_shares,
    add_winning_shares,
)
from prunescope.analysis.pareto.summary import summary
from prunescope.analysis.schema.pareto import (
    Pareto,
    ParetoPhase,
    SampleCount,
    SweepCell,
    SweepPoint,
    not_judged,
)


def judged(found: Pareto) -> Pareto:
    """A copy whose frontiers, winners, claims and sentences are recomputed from its points."""
    phases = {name: _phase(phase) for name, phase in found.phases.items()}
    new = msgspec.structs.replace(
        found, phases=phases, samples=SampleCount(count=NUM_SAMPLES, seed=SEED)
    )
    new.hypotheses = hypotheses(new)
    new.summary = summary(new)
    return new


def _phase(phase: ParetoPhase) -> ParetoPhase:
    """A phase whose points are compared within each batch and length."""
    bare = msgspec.structs.replace(phase, points=[_unplaced(point) for point in phase.points])
    cells = [_cell(cell, bare.points_in(cell)) for cell in phase.cells]
    return ParetoPhase(
        points=bare.points,
        winners=[winner for cell in cells for winner in cell.winners],
        break_even=frontier.in_every_cell(
            [cell.break_even for cell in cells], not_judged(bare.points)
        ),
        cells=cells,
    )


def _unplaced(point: SweepPoint) -> SweepPoint:
    return msgspec.structs.replace(point, on_frontier=False, frontier_share=None, equal_to=[])


def _cell(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
    best = frontier.frontier(points)
    for point in best:
        point.on_frontier = True
    add_frontier_shares(points, best)
    wins = frontier.winners(best, batch=cell.batch, prompt_len=cell.prompt_len)
    add_winning_shares(wins, points)
    return SweepCell(
        **msgspec.structs.asdict(cell.setting),
        dense_ns=cell.dense_ns,
        winners=wins,
        break_even=frontier.break_even(points),
        equal_flops=frontier.equal_flops(points),
        equal_sparsity=frontier.equal_sparsity(points),
    )
