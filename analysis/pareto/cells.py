"""All that follows from the points of a sweep: cells, frontier, winners, claims, sentences.

In: a Pareto with its points, and cells with the times of the dense model. Out: the whole Pareto.
The same points give the same answer, whether they come from runs or from a stored pareto.json.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.frontier import frontier
from prunescope.analysis.frontier.best import best_points
from prunescope.analysis.frontier.sampled_points import (
    NUM_SAMPLES,
    SEED,
    add_frontier_shares,
    add_winning_shares,
)
from prunescope.analysis.paper.claims import hypotheses
from prunescope.analysis.pareto.summary import summary
from prunescope.analysis.schema.pareto import (
    Pareto,
    ParetoPhase,
    SampleCount,
    SweepCell,
    SweepPoint,
    not_judged,
)


def recompute(pareto: Pareto) -> Pareto:
    """Return a copy whose frontiers, winners, claims and sentences are computed from its points.

    Args:
        pareto: The comparison with its points, and the cells with the times of the dense model.
    """
    phases = {name: _recompute_phase(phase) for name, phase in pareto.phases.items()}
    if pareto.subject.on_random_ids:  # no loss means anything, and none is better than another
        for phase in phases.values():
            for cell in phase.cells:
                cell.best = [best for best in cell.best if best.measure != "perplexity"]
    recomputed = msgspec.structs.replace(
        pareto, phases=phases, samples=SampleCount(count=NUM_SAMPLES, seed=SEED)
    )
    recomputed.hypotheses = hypotheses(recomputed)
    recomputed.summary = summary(recomputed)
    return recomputed


def _recompute_phase(phase: ParetoPhase) -> ParetoPhase:
    """Return a phase whose points are compared within each batch and length."""
    points = [
        msgspec.structs.replace(point, on_frontier=False, frontier_share=None, equal_to=[])
        for point in phase.points
    ]
    bare = msgspec.structs.replace(phase, points=points)
    cells = [_recompute_cell(cell, bare.points_in(cell)) for cell in phase.cells]
    return ParetoPhase(
        points=points,
        winners=[winner for cell in cells for winner in cell.winners],
        break_even=frontier.merge_break_even(
            [cell.break_even for cell in cells], not_judged(points)
        ),
        cells=cells,
    )


def _recompute_cell(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
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
        best=best_points(points),
    )
