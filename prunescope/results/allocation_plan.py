"""The plan of layers that `prunescope allocate` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from prunescope.results.result import PICTURES, StructResult, TabledResult
from prunescope.taxonomy.allocations.allocation_plan import KeptLayer, PlanOfLayers, read_plan
from prunescope.taxonomy.option import needed_path

if TYPE_CHECKING:
    from prunescope.analysis.predict.allocation_request import AllocateRequest
    from prunescope.analysis.report.allocation_figure import AllocationPlots
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.results.pruned_model import PrunedModel
    from prunescope.tracer.capture.progress import Progress
    from prunescope.tracer.export.checkpoint import SavedModel

PLAN_FIGURES = (*PICTURES, "tex", "csv")  # formats of the picture of a plan


class AllocationPlan(StructResult, TabledResult, PlanOfLayers, kw_only=True, dict=True):
    """The plan of `allocate`: what each layer keeps for a target, and what it is expected to give.

    Examples:
        >>> plan = prunescope.allocate("./SmolLM2", from_run="traces/dense", speedup=1.4)
        >>> plan.table.to_polars()
        >>> prunescope.trace("./SmolLM2", method="plan.json", out="traces/planned")
    """

    @classmethod
    def compute(
        cls,
        request: AllocateRequest,
        progress: Progress | None = None,
        *,
        pictures: Sequence[str] = ("png",),
    ) -> Self:
        """Decide what each layer keeps, and write the plan, its picture and the losses.

        Args:
            request: The model, the target, and where the plan goes.
            progress: What shows each stage; None: nothing does.
            pictures: The formats of the picture, of PLAN_FIGURES.
        """
        from prunescope.allocation import allocate

        return cls.of(allocate(request, progress, pictures), request.out, request.model)

    @classmethod
    def of(cls, struct: PlanOfLayers, path: Path | str = "plan.json", model: str = "") -> Self:
        """Return the plan with methods.

        Args:
            struct: The plan.
            path: Where it was written.
            model: The model as it was asked for; "": the model that the plan names.
        """
        plan = super().of(struct)
        plan.__dict__["_where"] = str(path), model or plan.model
        return plan

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a plan.json back.

        Args:
            path: The file.

        Raises:
            PrunescopeError: There is no such file, or it is not a plan.
        """
        return cls.of(read_plan(needed_path(path)), path)

    def pruned_model(self, model: str | None = None) -> PrunedModel:
        """Return the model as it is planned, which can be saved.

        Args:
            model: The dense model; None: the one that the plan was made for.
        """
        from prunescope.results.pruned_model import PrunedModel

        where, own = self.__dict__["_where"]
        dense = model or own

        def save(out: Path, progress: Progress, *, allow_code: bool) -> SavedModel:
            from prunescope.tracer.capture.model_saving import save_planned

            return save_planned(dense, Path(where), out, progress, allow_code=allow_code)

        return PrunedModel(name=f"{Path(dense).name} by {Path(where).name}", prune_and_save=save)

    @property
    def table(self) -> Records:
        """One row per layer: what stays of it, and the loss that this adds, in nats per token."""
        from prunescope.analysis.report.records import structs

        return structs("layers", KeptLayer, self.layers)

    @property
    def plot(self) -> AllocationPlots:
        """The figure `plan.plot.layers()`."""
        from prunescope.analysis.report.allocation_figure import AllocationPlots

        return AllocationPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "png"),
        **look: Any,
    ) -> list[Path]:
        """Write plan.md, plan.json and the picture of the plan into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, and png, pdf, svg, tex and csv for the picture.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, or the folder cannot be written.
        """
        return self._save(folder, formats, ("md", "json", *PLAN_FIGURES), **look)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        from prunescope.analysis.report.allocation_figure import plan_files
        from prunescope.analysis.report.markdown import sheet_text

        files: dict[str, bytes] = {}
        if "md" in names:
            files["plan.md"] = sheet_text("Plan of layers", self.__rich__()).encode()
        if "json" in names:
            files["plan.json"] = msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
        return files | plan_files(self, "plan", names)

    def __repr__(self) -> str:
        from prunescope.analysis.report.allocation_tables import targets_text

        text = f"{targets_text(self)}, {self.expected.speedup:.2f}× expected"
        text += f", {len(self.removed)} of {len(self.layers)} layers dropped"
        return f"<AllocationPlan of {self.model}: {text}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.allocation_tables import plan_sheet

        where, model = self.__dict__.get("_where", ("plan.json", self.model))
        return plan_sheet(self, where, model=model)
