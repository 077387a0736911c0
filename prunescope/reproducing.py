"""`prunescope reproduce`: a paper's numbers next to those of a sweep, or next to `predict`.

In: the folder of a sweep, or none. Out: a Reproduction. Without a sweep, predictions are of the
paper's own model, device and settings.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from prunescope.analysis.pareto.reproduce import bare, reproduce
from prunescope.analysis.schema.prediction import Execution
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.taxonomy.paper import ALL_SETTINGS, FIGURE_5, LOWEST, STEP_TIME, Paper, paper


def reproduce_sweep(sweep: Path) -> Reproduction:
    """The numbers of a sweep. Raises PrunescopeError where none of its results is done."""
    from prunescope.analysis.pareto.pareto import judge
    from prunescope.analysis.pareto.write import replays_in

    return reproduce(judge(sweep), paper(), replays_in(sweep))


def reproduce_predicted() -> Reproduction:
    """The speedups of whole models and the time of the dense step, predicted; other numbers of the
    paper have no prediction beside them."""
    found = bare(paper())
    cells: dict[tuple[int, int], list[ReproducedValue]] = defaultdict(list)
    for one in found.values:
        if one.figure in (FIGURE_5, STEP_TIME) and one.batch and one.prompt_len:
            cells[one.batch, one.prompt_len].append(one)
    for (batch, length), values in cells.items():
        families = [one.name for one in values if one.figure == FIGURE_5]
        expected = _predicted(paper(), batch, length, families, sparsity=0.5)
        for one in values:
            if one.figure == STEP_TIME:  # each family has the same dense side
                execution, _ = expected[families[0], str(one.phase)]
                one.predicted = execution.dense_ns / 1e6
                continue
            execution, one.bound = expected[one.name, str(one.phase)]
            one.predicted, one.predicted_range = execution.speedup, execution.range
    _predict_ends(found, list(cells))
    found.notes = [
        "predicted: by `prunescope predict` in the paper's setting, of whole models; some of its "
        "constants were read from this paper's Figs. 2 and 6 (batch 1, 32k)"
    ]
    return found


def _predict_ends(found: Reproduction, cells: list[tuple[int, int]]) -> None:
    """The lowest and the highest prediction over the settings of the paper."""
    ends = [one for one in found.values if one.figure == ALL_SETTINGS]
    for sparsity in {one.sparsity for one in ends}:
        values = [one for one in ends if one.sparsity == sparsity]
        families = [one.name for one in values]
        expected = [_predicted(paper(), *cell, families, sparsity=sparsity) for cell in cells]
        for one in values:
            of_all = sorted(
                (cell[one.name, str(one.phase)] for cell in expected), key=lambda of: of[0].speedup
            )
            execution, one.bound = of_all[0] if one.at == LOWEST else of_all[-1]
            one.predicted, one.predicted_range = execution.speedup, execution.range


def _predicted(
    of: Paper, batch: int, length: int, families: list[str], *, sparsity: float | None
) -> dict[tuple[str, str], tuple[Execution, float | None]]:
    """The expected time, and the roofline bound, of each family and phase."""
    from prunescope.analysis.predict.predict import predict
    from prunescope.analysis.predict.predict_request import PredictRequest

    options: dict[str, Any] = {
        "model": of.setup.model,
        "device": of.setup.device,
        "method": list(dict.fromkeys(families)),
        "sparsity": sparsity,
        "phase": "both",
        "batch": batch,
        "prompt_len": length,
        "logits": of.setup.logits,
        "launch": of.setup.mode,
        "break_even": False,
    }
    expected: dict[tuple[str, str], tuple[Execution, float | None]] = {}
    for point in predict(PredictRequest(**options)).points:
        for name, phase in point.phases.items():
            assert phase.ladder is not None and phase.predicted is not None  # a method was given
            expected[str(point.method), name] = phase.predicted.execution, phase.ladder.roofline
    return expected
