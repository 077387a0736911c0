"""The numbers of a paper next to those of a sweep, or of `predict`.

In: the folder of a sweep, or none. Out: a Reproduction. Without a sweep, predictions are made for
the paper's own model, device and settings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunescope.analysis.schema import reproduction as schema
from prunescope.results.result import StructResult, TabledResult
from prunescope.taxonomy.paper import ALL_SETTINGS, FIGURE_5, LOWEST, STEP_TIME, Paper, paper

if TYPE_CHECKING:
    from prunescope.analysis.paper.reproduction_figure import ReproductionPlots
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.analysis.schema.prediction import Execution


class Reproduction(StructResult, TabledResult, schema.Reproduction, kw_only=True, dict=True):
    """A paper's numbers next to those of a sweep or of `predict`.

    Examples:
        >>> reproduction = prunescope.reproduce("traces/sweep")
        >>> reproduction.to_polars()
        >>> reproduction.save("redrawn", formats=["csv", "pdf"])
    """

    @classmethod
    def compute(cls, sweep: Path | None) -> Self:
        """Put the numbers next to those of a sweep, or next to predictions if there is none."""
        if sweep is None:
            return cls.of(reproduce_predicted())
        from prunescope.analysis.paper.reproduce import reproduce
        from prunescope.analysis.pareto.pareto import judge
        from prunescope.analysis.pareto.write import replays_in

        return cls.of(reproduce(judge(sweep), paper(), replays_in(sweep)))

    @property
    def table(self) -> Records:
        """One row per published number: figure, setting, published, ours, bound, predicted."""
        from prunescope.analysis.report.records import structs

        return structs("values", schema.ReproducedValue, self.values)

    @property
    def plot(self) -> ReproductionPlots:
        """The figure `reproduction.plot.speedups()`."""
        from prunescope.analysis.paper.reproduction_figure import ReproductionPlots

        return ReproductionPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("csv", "png", "pdf"),
        **look: Any,
    ) -> list[Path]:
        """Write all numbers and the redrawn figure into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: csv and json for the numbers; png, pdf, svg and tex for the figure.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, or the folder cannot be written.
        """
        from prunescope.analysis.paper.reproduction_figure import FORMATS

        return self._save(folder, formats, FORMATS, **look)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        from prunescope.analysis.paper.reproduction_figure import reproduction_files

        return reproduction_files(self, names)

    def __repr__(self) -> str:
        ours = sum(value.ours is not None for value in self.values)
        predicted = sum(value.predicted is not None for value in self.values)
        return (
            f"<Reproduction of {len(self.values)} published numbers, {ours} measured, "
            f"{predicted} predicted>"
        )

    def __rich__(self) -> Sheet:
        from prunescope.analysis.paper.reproduction_tables import reproduction

        return reproduction(self)


def reproduce_predicted() -> schema.Reproduction:
    """Predict the speedups of whole models and the time of the dense step.

    Other numbers of the paper have no prediction next to them.
    """
    from prunescope.analysis.paper.reproduce import bare

    reproduction = bare(paper())
    cells: dict[tuple[int, int], list[schema.ReproducedValue]] = defaultdict(list)
    for value in reproduction.values:
        if value.figure in (FIGURE_5, STEP_TIME) and value.batch and value.prompt_len:
            cells[value.batch, value.prompt_len].append(value)
    for (batch, length), values in cells.items():
        families = [value.name for value in values if value.figure == FIGURE_5]
        expected = _predict(paper(), batch, length, families, sparsity=0.5)
        for value in values:
            if value.figure == STEP_TIME:  # each family has the same dense side
                execution, _ = expected[families[0], str(value.phase)]
                value.predicted = execution.dense_ns / 1e6
                continue
            execution, value.bound = expected[value.name, str(value.phase)]
            value.predicted, value.predicted_range = execution.speedup, execution.range
    _predict_ends(reproduction, list(cells))
    reproduction.notes = [
        "predicted: by `prunescope predict` in the paper's setting, of whole models; some of its "
        "constants were read from this paper's Figs. 2 and 6 (batch 1, 32k)"
    ]
    return reproduction


def _predict_ends(reproduction: schema.Reproduction, cells: list[tuple[int, int]]) -> None:
    """Set the lowest and the highest prediction over the settings of the paper."""
    ends = [value for value in reproduction.values if value.figure == ALL_SETTINGS]
    for sparsity in {value.sparsity for value in ends}:
        values = [value for value in ends if value.sparsity == sparsity]
        families = [value.name for value in values]
        expected = [_predict(paper(), *cell, families, sparsity=sparsity) for cell in cells]
        for value in values:
            predictions = sorted(
                (cell[value.name, str(value.phase)] for cell in expected),
                key=lambda prediction: prediction[0].speedup,
            )
            execution, value.bound = predictions[0 if value.at == LOWEST else -1]
            value.predicted, value.predicted_range = execution.speedup, execution.range


def _predict(
    published: Paper, batch: int, length: int, families: list[str], *, sparsity: float | None
) -> dict[tuple[str, str], tuple[Execution, float | None]]:
    """Return the expected time and the roofline bound of each family and phase."""
    from prunescope.analysis.predict.predict import predict
    from prunescope.analysis.predict.predict_request import PredictRequest

    options: dict[str, Any] = {
        "model": published.setup.model,
        "device": published.setup.device,
        "method": list(dict.fromkeys(families)),
        "sparsity": sparsity,
        "phase": "both",
        "batch": batch,
        "prompt_len": length,
        "logits": published.setup.logits,
        "launch": published.setup.mode,
        "break_even": False,
    }
    expected: dict[tuple[str, str], tuple[Execution, float | None]] = {}
    for point in predict(PredictRequest(**options)).points:
        for name, phase in point.phases.items():
            assert phase.ladder is not None and phase.predicted is not None  # a method was given
            expected[str(point.method), name] = phase.predicted.execution, phase.ladder.roofline
    return expected
