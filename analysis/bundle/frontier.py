"""The table of a bundle's runs with their losses, and which of them are on the frontier.

In: reports and their runs. Out: CSV text, one row per run and phase; times are speedups.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from prunescope.analysis.frontier.frontier import frontier
from prunescope.analysis.pareto.points import point_of
from prunescope.analysis.schema.pareto import Loss, SweepPoint, TextLoss
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.runs.sweep_files import SweepResult

_HEAD = ("phase", "run", "family", "s", "batch", "prompt_len", "speedup", "speedup_low",
         "speedup_high", "timing_valid", "perplexity_rel", "low", "high",
         "perplexity_rel_recovered", "recovered_low", "recovered_high", "other_text",
         "other_text_recovered", "steps", "on_frontier")  # fmt: skip


def frontier_csv(
    reports: Mapping[str, Report], runs: Mapping[str, Mapping[str, Run]]
) -> str | None:
    """Return the table of runs, compared within a phase, batch, length and dense model.

    Args:
        reports: The reports by run.
        runs: The manifests by run and variant.

    Returns:
        The table; None if no run has a measured loss.
    """
    cells: dict[tuple[Any, ...], list[tuple[SweepPoint, Run]]] = {}
    for point, run, cell in _frontier_points(reports, runs):
        cells.setdefault(cell, []).append((point, run))
    if not any(point.loss for in_cell in cells.values() for point, _ in in_cell):
        return None
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_HEAD)
    for cell, in_cell in sorted(cells.items(), key=lambda item: str(item[0])):
        best = {point.id for point in frontier(point for point, _ in in_cell)}
        for point, run in in_cell:
            writer.writerow(_frontier_row(str(cell[0]), point, run, on_frontier=point.id in best))
    return table.getvalue()


def _frontier_points(
    reports: Mapping[str, Report], runs: Mapping[str, Mapping[str, Run]]
) -> Iterator[tuple[SweepPoint, Run, tuple[Any, ...]]]:
    for name, report in reports.items():
        run = runs.get(name, {}).get("pruned")
        for phase_name, phase in report.phases.items():
            entered = None if run is None else run.phases.get(phase_name)
            known = phase_name in ("prefill", "decode")
            if run is None or entered is None or phase.ladder is None or not known:
                continue
            pruning = run.pruning or Pruning()
            entry = SweepResult(
                id=name,
                family=str(pruning.method or "checkpoint"),
                state="done",
                sparsity=pruning.sparsity,
                phase=phase_name,  # type: ignore[arg-type]
                batch=entered.batch,
                prompt_len=entered.prompt_len,
            )
            dense = runs[name].get("dense", run)
            cell = (phase_name, entered.batch, entered.prompt_len, dense.parameters, dense.dtype)
            yield point_of(entry, run, phase), run, cell


def _frontier_row(phase: str, point: SweepPoint, run: Run, *, on_frontier: bool) -> list[Any]:
    loss = point.loss or Loss()
    on_other_text = loss.other_text or TextLoss()
    recovery = run.pruning and run.pruning.recovery
    steps = recovery and recovery.steps
    values = [
        phase, point.id, point.family, point.sparsity, point.batch, point.prompt_len,
        point.realised, *(point.realised_ci95 or (None, None)), _yes(point.timing_valid),
        loss.perplexity_rel, *(loss.ci95 or (None, None)),
        loss.perplexity_rel_recovered, *(loss.recovered_ci95 or (None, None)),
        on_other_text.perplexity_rel, on_other_text.perplexity_rel_recovered, steps,
        _yes(on_frontier),
    ]  # fmt: skip
    return ["" if value is None else value for value in values]


def _yes(value: object) -> str:
    return "yes" if value else "no"
