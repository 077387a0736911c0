"""`prunescope reproduce`: a paper's numbers beside those of a sweep, or beside `predict`.

In: the folder of a sweep, or none. Out: a Reproduction. Without a sweep, predictions are of the
paper's own model, device and settings.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from prunescope.analysis.pareto.reproduce import bare, reproduce
from prunescope.analysis.schema.prediction import PredictedPoint
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.taxonomy.paper import FIGURE_5, Paper, paper


def reproduce_sweep(sweep: Path) -> Reproduction:
    """The numbers of a sweep. Raises PrunescopeError where none of its results is done."""
    from prunescope.analysis.pareto.pareto import judge
    from prunescope.analysis.pareto.write import replays_in

    return reproduce(judge(sweep), paper(), replays_in(sweep))


def reproduce_predicted() -> Reproduction:
    """The speedups of whole models, predicted; other numbers of the paper stand alone."""
    found = bare(paper())
    cells: dict[tuple[int, int], list[ReproducedValue]] = defaultdict(list)
    for one in found.values:
        if one.figure == FIGURE_5 and one.batch and one.prompt_len:
            cells[one.batch, one.prompt_len].append(one)
    for (batch, length), values in cells.items():
        expected = _predicted(paper(), batch, length, [one.name for one in values])
        for one in values:
            phase = expected[one.name].phases[str(one.phase)]
            assert phase.ladder is not None and phase.predicted is not None  # a method was given
            execution = phase.predicted.execution
            one.bound = phase.ladder.roofline
            one.predicted, one.predicted_range = execution.speedup, execution.range
    found.notes = [
        "predicted: by `prunescope predict` in the paper's setting, of whole models; some of its "
        "constants were read from this paper's Figs. 2 and 6 (batch 1, 32k)"
    ]
    return found


def _predicted(
    of: Paper, batch: int, length: int, families: list[str]
) -> dict[str, PredictedPoint]:
    """The point of each family at s = 0.5, both phases."""
    from prunescope.analysis.predict.predict import predict
    from prunescope.analysis.predict.request import PredictRequest

    options: dict[str, Any] = {
        "model": of.setup.model,
        "device": of.setup.device,
        "method": list(dict.fromkeys(families)),
        "sparsity": 0.5,
        "phase": "both",
        "batch": batch,
        "prompt_len": length,
        "logits": of.setup.logits,
        "launch": of.setup.mode,
        "break_even": False,
    }
    return {str(point.method): point for point in predict(PredictRequest(**options)).points}
