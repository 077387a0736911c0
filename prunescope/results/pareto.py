"""Speed against loss of a sweep, as `prunescope pareto` judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunescope.analysis.schema import pareto as schema
from prunescope.results.result import StructResult, format_names
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path, needed_path

if TYPE_CHECKING:
    from prunescope.analysis.report.pareto_figures import ParetoPlots
    from prunescope.analysis.report.records import Frame, Records
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.results.pruned_model import PrunedModel
    from prunescope.tracer.capture.progress import Progress
    from prunescope.tracer.export.checkpoint import SavedModel


class Pareto(StructResult, schema.Pareto, kw_only=True, dict=True):
    """Speed against loss of a sweep, as `prunescope pareto` judges it."""

    @classmethod
    def compute(cls, folder: Path) -> Self:
        """Judge the results of the sweep in a folder."""
        from prunescope.analysis.pareto.pareto import judge

        result = cls.of(judge(folder))
        result.__dict__["_folder"] = folder
        return result

    def pruned_model(
        self, point: str, model: str | None = None, *, text: Path | str | None = None
    ) -> PrunedModel:
        """Return the pruned model of a point, which can be saved.

        Args:
            point: The id of the point.
            model: The dense model of the sweep; None: by the name that the sweep has.
            text: The text that the sweep read; None: it read none.

        Examples:
            >>> prunescope.pareto("traces/sweep").pruned_model(ID, "./SmolLM2").save("./pruned")
        """
        from prunescope.results.pruned_model import PrunedModel
        from prunescope.tracer.sweep.request import SavePoint

        where = self.__dict__["_folder"]

        def save(out: Path, progress: Progress, *, allow_code: bool) -> SavedModel:
            from prunescope.tracer.sweep.point_saving import save_point

            wanted = SavePoint(
                folder=where, point=point, out=out, model=model, text=text, allow_code=allow_code
            )
            return save_point(wanted, progress)

        return PrunedModel(name=point, prune_and_save=save)

    @property
    def points(self) -> Records:
        """One row per point, with its phase, and as `loss` its relative perplexity."""
        from prunescope.analysis.report.records import Records, structs

        tables = {
            name: structs("points", schema.SweepPoint, phase.points)
            for name, phase in self.phases.items()
        }
        rows = tuple(
            {"phase": name, **row, "loss": point.loss and point.loss.perplexity_rel}
            for name, table in tables.items()
            for row, point in zip(table, self.phases[name].points, strict=True)
        )
        columns: Mapping[str, Any] = next((table.columns for table in tables.values()), {})
        return Records("points", {"phase": str, **columns, "loss": float}, rows)

    def to_polars(self) -> Frame:
        """Return `points` as a polars DataFrame."""
        return self.points.to_polars()

    @property
    def plot(self) -> ParetoPlots:
        """The figure `pareto.plot.frontier()`."""
        from prunescope.analysis.report.pareto_figures import ParetoPlots

        return ParetoPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "png", "pdf"),
        *,
        figures: str | None = None,
        gemm: Path | str | None = None,
        **look: Any,
    ) -> list[Path]:
        """Write pareto.md, pareto.json, tables of results and figures into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, tex, csv, and png, pdf and svg for the figures.
            figures: "paper" for the kinds of figure of the taxonomy's paper as well; paper.md then
                says which could not be plotted. None: none of them.
            gemm: The file that `prunescope gemm --json` wrote, for the figures of GEMMs.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, `figures` is neither None nor "paper", `gemm` is
                not a file of replayed GEMMs, or the folder cannot be written.
        """
        from prunescope.analysis.pareto.write import paper_files, paper_set, write_pareto
        from prunescope.analysis.report.printing import printed_as, printing_of

        names = format_names(formats)
        if figures not in (None, "paper"):
            raise PrunescopeError(f"figures is {figures!r}", hint='accepted: "paper"')
        more = None
        if figures is not None:
            with printed_as(printing_of(names, **look)):
                more = paper_files(paper_set(self, None, as_path(gemm)), names)
        return write_pareto(self, needed_path(folder), formats=names, more=more, **look)

    def to_json(self) -> bytes:
        """Return the UTF-8 JSON of pareto.json, indented by two spaces."""
        from prunescope.analysis.pareto.files import to_json

        return to_json(self)

    def __repr__(self) -> str:
        counts = (f"{name} {len(phase.points)} points" for name, phase in self.phases.items())
        return f"<Pareto: {', '.join(counts)}, {len(self.failed)} failed>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.pareto_tables import pareto_summary

        return pareto_summary(self)
