"""A prediction: a point, a grid, a ranking, or the families on a measured run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from prunescope.results.result import PICTURES, TabledResult
from prunescope.taxonomy.by_name import ByName, by_name
from prunescope.taxonomy.words import plural

if TYPE_CHECKING:
    from prunescope.analysis.predict.predict_request import PredictRequest
    from prunescope.analysis.report.predict_figure import PredictionPlots
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.sheet import Sheet


class Prediction(TabledResult, ByName):
    """The result of `predict`: the dict of `--json`, with tables and plots.

    Examples:
        >>> prediction = prunescope.predict(model="llama-3.1-8b", device="h100-sxm")
        >>> prediction.to_polars()
        >>> prediction.plot.curves()
    """

    noun = "entry of a prediction"

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(by_name(dict(*values, **more), "prediction"))

    @classmethod
    def compute(cls, request: PredictRequest) -> Self:
        """Predict from shapes and peaks, rank the families, or scale a measured dense run."""
        from prunescope.taxonomy.scrubbed import scrubbed

        return cls(scrubbed(msgspec.to_builtins(_predict(request))))

    @property
    def table(self) -> Records:
        """One row per method, sparsity and phase: speedups with their range, ns, bytes."""
        from prunescope.analysis.report.predict_records import prediction_records

        return prediction_records(self)

    @property
    def plot(self) -> PredictionPlots:
        """The figure `prediction.plot.curves()`."""
        from prunescope.analysis.report.predict_figure import PredictionPlots

        return PredictionPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "csv"),
        **look: Any,
    ) -> list[Path]:
        """Write prediction.md, prediction.json, prediction.csv and curves into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, csv, and png, pdf, svg and tex for the curves.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, there is no curve to plot, or the folder cannot be
                written.
        """
        return self._save(folder, formats, ("md", "json", "csv", "tex", *PICTURES), **look)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        from prunescope.analysis.report.predict_figure import curve_files
        from prunescope.analysis.report.predict_records import render_prediction

        files: dict[str, bytes] = {}
        for name in names:
            if name == "md":
                files["prediction.md"] = render_prediction(self).encode()
            elif name == "json":
                files["prediction.json"] = msgspec.json.format(msgspec.json.encode(self)) + b"\n"
            elif name == "csv":
                files["prediction.csv"] = self._csv()
            else:
                files |= curve_files(self, [name])
        return files

    def __repr__(self) -> str:
        subject = self.get("subject") or {}
        name = str(subject.get("name") or subject.get("model") or "a run")[:80]
        rows = len(self.get("points") or self.get("by") or ())
        counted = f", {rows} row{plural(rows)}" if rows else ""
        return f"<Prediction of {name}{counted}; show() prints it, its keys: {', '.join(self)}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.predict_tables import prediction

        return prediction(self)


def _predict(request: PredictRequest) -> msgspec.Struct:
    """Return the prediction that the options of a request call for, as the schema has it."""
    if request.from_run is not None:
        from prunescope.analysis.predict_from import predict_from

        return predict_from(request)
    if request.rank and request.has_objectives:
        from prunescope.analysis.predict.objectives import choose

        return choose(request)
    if request.rank:
        from prunescope.analysis.predict.rank import rank

        return rank(request)
    from prunescope.analysis.predict.predict import predict
    from prunescope.taxonomy.collection import no_collection

    with no_collection():
        return predict(request)
