"""Results of the Python API: the values of analysis/schema with methods for people.

In: results of `analysis`. Out: objects that print, plot, save and turn into data frames. They are
the schema's own structs, so that whatever takes a Report takes these.
"""

from __future__ import annotations

import html
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from prunescope.analysis.schema import comparison as comparison_schema
from prunescope.analysis.schema import pareto as pareto_schema
from prunescope.analysis.schema import report as report_schema
from prunescope.analysis.schema import reproduction as reproduction_schema
from prunescope.taxonomy.allocations.allocation_plan import KeptLayer, PlanOfLayers, read_plan
from prunescope.taxonomy.by_name import ByName, by_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.option import as_path

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from prunescope.analysis.pipeline import Analysis
    from prunescope.analysis.report.allocation_figure import AllocationPlots
    from prunescope.analysis.report.comparison_figure import ComparisonPlots
    from prunescope.analysis.report.figures import Plots
    from prunescope.analysis.report.pareto_figures import ParetoPlots
    from prunescope.analysis.report.predict_figure import PredictionPlots
    from prunescope.analysis.report.records import Frame, Records
    from prunescope.analysis.report.replay_figure import ReplayPlots
    from prunescope.analysis.report.reproduction_figure import ReproductionPlots
    from prunescope.analysis.report.sheet import Sheet
    from prunescope.taxonomy.replays import Replays

T = TypeVar("T", bound=msgspec.Struct)


class Report(report_schema.Report, kw_only=True, dict=True):
    """The report of `analyze`. `report.phases["prefill"]` holds everything that is known of a
    phase; `report.gemms` and the other tables span all phases and become data frames.

    Examples:
        >>> report = prunescope.analyze("traces/first")
        >>> report.show()
        >>> report.ledger.to_polars()
        >>> report.save("first", formats=["md", "tex", "pdf"])
    """

    @classmethod
    def of(cls, done: Analysis) -> Self:
        """The report of an analysis, which keeps the kernels frames for csv and parquet."""
        made = _same_fields(done.report, cls)
        made.__dict__["_done"] = done
        return made

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A report.json read back. Raises PrunescopeError for another file, none at all, and a
        newer version."""
        file = _path(path)
        if not file.is_file():
            raise PrunescopeError(
                f"no such file: {file.name}", hint="give the report.json that analyze wrote"
            )
        return _same_fields(report_schema.from_json(file.read_bytes(), where=file.name), cls)

    def show(self, *, full: bool = False) -> None:
        """Print what `prunescope analyze` prints; `full` as its --full."""
        from prunescope.analysis.report.terminal import TerminalReport

        _print(TerminalReport(self, full=full))

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "html"),
        *,
        label_prefix: str = "",
    ) -> list[Path]:
        """Write the report into `folder`; returns the paths.

        `formats`: as `--format` takes them, such as tex or csv; `label_prefix`: in front of every
        label in LaTeX, so that several reports fit into one paper. Raises PrunescopeError for
        another format, and for parquet and perfetto of a report that was loaded.
        """
        from prunescope.analysis.report.formats import shows_hosts
        from prunescope.analysis.report.write import write_report

        names = _names(formats)
        prefix: object = label_prefix
        if not isinstance(prefix, str):
            raise PrunescopeError(
                f"label_prefix is {reprlib.repr(prefix)}", hint="accepted: a text"
            )
        done: Analysis | None = self.__dict__.get("_done")
        hosts = done.hosts() if done is not None and shows_hosts(names) else None
        frames = None if done is None else done.frames
        return write_report(
            self,
            _path(folder),
            formats=names,
            frames=frames,
            hosts=hosts,
            label_prefix=label_prefix,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in report.json."""
        return _plain(self)

    @property
    def gemms(self) -> Records:
        """One row per GEMM: role, axis, M, N, K, times in ns a step."""
        return self._table("gemms")

    @property
    def ledger(self) -> Records:
        """A row a ledger row, and one for each of its parts."""
        return self._table("ledger")

    @property
    def ladder(self) -> Records:
        """A row a bound of the ladder."""
        return self._table("ladder")

    @property
    def kernels(self) -> Records:
        """One row per kernel name, largest first."""
        return self._table("kernels")

    @property
    def findings(self) -> Records:
        """A row a finding."""
        return self._table("findings")

    @property
    def roofline(self) -> Records:
        """A row a point of the roofline plot."""
        return self._table("roofline")

    @property
    def plot(self) -> Plots:
        """Figures: `report.plot.ledger()`, `.ladder()`, `.roofline()`, `.bounds()`, `.layers()`,
        `.waves()`, `.kinds()`, `.experts()`."""
        from prunescope.analysis.report.figures import Plots

        return Plots(self)

    def _table(self, name: str) -> Records:
        from prunescope.analysis.report import records

        table: Records = getattr(records, name)(self)
        return table

    def __repr__(self) -> str:
        from prunescope.analysis.report.notebook import brief

        return f"<Report {brief(self)}>"

    def __rich__(self) -> RenderableType:
        from prunescope.analysis.report.terminal import TerminalReport

        return TerminalReport(self)

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.notebook import render_notebook

        return render_notebook(self)


class _Shown:
    """Shared by all results: they print as their command does, in a console or a notebook."""

    __slots__ = ()

    def __rich__(self) -> Any:
        raise NotImplementedError

    def show(self) -> None:
        """Print what the command prints."""
        _print(self.__rich__())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the JSON that the command writes."""
        return _plain(self)

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.notebook import render_sheet

        return render_sheet(self.__rich__())


class _Tabled(_Shown):
    """Shared by results that have a table."""

    __slots__ = ()

    @property
    def table(self) -> Records:
        """The rows of the result."""
        raise NotImplementedError

    def to_polars(self) -> Frame:
        """`table` as a polars DataFrame."""
        return self.table.to_polars()


class Comparison(_Tabled, comparison_schema.Comparison, kw_only=True, dict=True):
    """Several runs side by side, as `prunescope analyze A B` compares them."""

    @classmethod
    def of(cls, found: comparison_schema.Comparison) -> Self:
        """The comparison with methods, and so its reports."""
        reports = {name: _same_fields(one, Report) for name, one in found.reports.items()}
        return _same_fields(msgspec.structs.replace(found, reports=reports), cls)

    @property
    def table(self) -> Records:
        """One row per run and phase, plain columns; `rows` has ladder, ledger and sparsity too."""
        from prunescope.analysis.report.records import structs

        return structs("comparison", comparison_schema.ComparisonRow, self.rows)

    @property
    def plot(self) -> ComparisonPlots:
        """Figures: `comparison.plot.speedups()`."""
        from prunescope.analysis.report.comparison_figure import ComparisonPlots

        return ComparisonPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "html"),
        *,
        label_prefix: str = "",
    ) -> list[Path]:
        """Write table and figure into `folder`; returns the paths."""
        from prunescope.analysis.report.comparison import write_comparison

        names = _names(formats)
        return write_comparison(self, _path(folder), formats=names, label_prefix=label_prefix)

    def __repr__(self) -> str:
        runs = dict.fromkeys(row.run for row in self.rows)
        return f"<Comparison of {len(runs)} runs, {len(self.rows)} rows, {len(self.failed)} failed>"

    def __rich__(self) -> RenderableType:
        from prunescope.analysis.report.comparison import comparison_sheet

        return comparison_sheet(self)

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.notebook import render_comparison

        return render_comparison(self)


class Pareto(_Shown, pareto_schema.Pareto, kw_only=True, dict=True):
    """Speed against loss of a sweep, as `prunescope pareto` judges it."""

    @classmethod
    def of(cls, found: pareto_schema.Pareto) -> Self:
        """The judgement with methods."""
        return _same_fields(found, cls)

    @property
    def points(self) -> Records:
        """A row a point, with its phase and `loss` as the relative perplexity."""
        from prunescope.analysis.report.records import Records, structs

        found: list[Records] = []
        rows: list[dict[str, Any]] = []
        for name, phase in self.phases.items():
            found.append(structs("points", pareto_schema.SweepPoint, phase.points))
            for row, point in zip(found[-1], phase.points, strict=True):
                rows.append(
                    {"phase": name, **row, "loss": point.loss and point.loss.perplexity_rel}
                )
        columns: Mapping[str, Any] = found[0].columns if found else {}
        return Records("points", {"phase": str, **columns, "loss": float}, tuple(rows))

    def to_polars(self) -> Frame:
        """`points` as a polars DataFrame."""
        return self.points.to_polars()

    @property
    def plot(self) -> ParetoPlots:
        """Figures: `pareto.plot.frontier()`."""
        from prunescope.analysis.report.pareto_figures import ParetoPlots

        return ParetoPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "png", "pdf"),
        *,
        figures: str | None = None,
        gemm: Path | str | None = None,
    ) -> list[Path]:
        """Write pareto.md, pareto.json and figures into `folder`; returns the paths. With
        `figures="paper"` also the kinds of figure of the taxonomy's paper, those of GEMMs from the
        file `gemm` that `prunescope gemm --json` wrote; paper.md says what was not plotted."""
        from prunescope.analysis.pareto.write import paper_files, paper_set, write_pareto

        names = _names(formats)
        if figures not in (None, "paper"):
            raise PrunescopeError(f"figures is {figures!r}", hint='accepted: "paper"')
        more = None
        if figures is not None:
            more = paper_files(paper_set(self, None, as_path(gemm)), names)
        return write_pareto(self, _path(folder), formats=names, more=more)

    def __repr__(self) -> str:
        counts = (f"{name} {len(phase.points)} points" for name, phase in self.phases.items())
        return f"<Pareto: {', '.join(counts)}, {len(self.failed)} failed>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.pareto_tables import pareto_summary

        return pareto_summary(self)


class Reproduction(_Tabled, reproduction_schema.Reproduction, kw_only=True, dict=True):
    """A paper's numbers next to those of a sweep or of `predict`, as `prunescope reproduce` prints
    them.

    Examples:
        >>> found = prunescope.reproduce("traces/sweep")
        >>> found.to_polars()
        >>> found.save("redrawn", formats=["csv", "pdf"])
    """

    @classmethod
    def of(cls, found: reproduction_schema.Reproduction) -> Self:
        """The numbers with methods."""
        return _same_fields(found, cls)

    @property
    def table(self) -> Records:
        """A row a published number: figure, setting, published, ours, bound, predicted."""
        from prunescope.analysis.report.records import structs

        return structs("values", reproduction_schema.ReproducedValue, self.values)

    @property
    def plot(self) -> ReproductionPlots:
        """Figures: `found.plot.speedups()`."""
        from prunescope.analysis.report.reproduction_figure import ReproductionPlots

        return ReproductionPlots(self)

    def save(
        self, folder: Path | str, formats: Sequence[str] | str = ("csv", "png", "pdf")
    ) -> list[Path]:
        """Write reproduction.csv (all numbers), .json and the redrawn figure (png, pdf, svg) into
        `folder`; returns the paths."""
        from prunescope.analysis.report.reproduction_figure import FORMATS, reproduction_files
        from prunescope.analysis.report.write import check_formats, write_files

        names = _names(formats)
        check_formats(names, FORMATS)
        return write_files(reproduction_files(self, names), _path(folder))

    def __repr__(self) -> str:
        ours = sum(one.ours is not None for one in self.values)
        predicted = sum(one.predicted is not None for one in self.values)
        return (
            f"<Reproduction of {len(self.values)} published numbers, {ours} measured, "
            f"{predicted} predicted>"
        )

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.reproduction_tables import reproduction

        return reproduction(self)


class Prediction(_Tabled, ByName):
    """The result of `predict`: the dict of `--json`, with tables and plots.

    Examples:
        >>> found = prunescope.predict(model="llama-3.1-8b", device="h100-sxm")
        >>> found.to_polars()
        >>> found.plot.curves()
    """

    what = "entry of a prediction"

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(by_name(dict(*values, **more), "prediction"))

    @property
    def table(self) -> Records:
        """A row a method, sparsity and phase: speedups with their range, ns, bytes."""
        from prunescope.analysis.report.predict_records import prediction_records

        return prediction_records(self)

    @property
    def plot(self) -> PredictionPlots:
        """Figures: `prediction.plot.curves()`."""
        from prunescope.analysis.report.predict_figure import PredictionPlots

        return PredictionPlots(self)

    def save(
        self, folder: Path | str, formats: Sequence[str] | str = ("md", "json", "csv")
    ) -> list[Path]:
        """Write prediction.md, prediction.json, prediction.csv, and curves as png, pdf or svg, into
        `folder`; returns the paths. Raises PrunescopeError for another format."""
        from prunescope.analysis.report.figure_style import plotting, saved
        from prunescope.analysis.report.predict_records import render_prediction
        from prunescope.analysis.report.write import check_formats, write_files

        names = _names(formats)
        check_formats(names, ("md", "json", "csv", *_PICTURES))
        files: dict[str, bytes] = {}
        for name in names:
            if name == "md":
                files["prediction.md"] = render_prediction(self).encode()
            elif name == "json":
                files["prediction.json"] = msgspec.json.format(msgspec.json.encode(self)) + b"\n"
            elif name == "csv":
                files["prediction.csv"] = self.to_polars().write_csv().encode()
            else:
                with plotting():
                    files[f"curves.{name}"] = saved(self.plot.curves(), name)
        return write_files(files, _path(folder))

    def __repr__(self) -> str:
        subject = self.get("subject") or {}
        name = str(subject.get("name") or subject.get("model") or "a run")[:80]
        rows = len(self.get("points") or self.get("by") or ())
        counted = f", {rows} row{'s' * (rows != 1)}" if rows else ""
        return f"<Prediction of {name}{counted}; show() prints it, its keys: {', '.join(self)}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.predict_tables import prediction

        return prediction(self)


class Verified(_Shown, ByName):
    """The result of `verify`: the dict of `--json`, which prints as the command does.

    Examples:
        >>> found = prunescope.verify("evidence.zip")
        >>> found.passed, found["failed"]
    """

    what = "entry of a verification"

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(by_name(dict(*values, **more), "verification"))

    @property
    def passed(self) -> bool:
        """Whether no file is wrong, all could be compared, and the profiled steps allow the speedup
        of the samples: exit code 0 of the command."""
        return bool(self["ok"] and not self["partial"] and self["samples_agree"] is not False)

    def __repr__(self) -> str:
        wrong, checked = len(self["failed"]), self["checked"]
        outcome = "passed" if self.passed else "partial" if self["partial"] else "failed"
        return f"<Verified: {outcome}, {wrong} of {checked} files wrong; show() prints it>"

    def __rich__(self) -> Text:
        from prunescope.analysis.report.listings import verified

        return verified(self, allow_missing_figures=False)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.__rich__().plain)}</pre>"


class AllocationPlan(_Tabled, PlanOfLayers, kw_only=True, dict=True):
    """The plan of `allocate`: what each layer keeps for a target, and what it is expected to give.

    Examples:
        >>> plan = prunescope.allocate("./SmolLM2", from_run="traces/dense", speedup=1.4)
        >>> plan.table.to_polars()
        >>> prunescope.trace("./SmolLM2", method="plan.json", out="traces/planned")
    """

    @classmethod
    def of(cls, plan: PlanOfLayers, path: Path | str = "plan.json", model: str = "") -> Self:
        """The plan with methods. `path`: where it was written; `model`: as it was asked for."""
        made = _same_fields(plan, cls)
        made.__dict__["_where"] = str(path), model or plan.model
        return made

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A plan.json read back. Raises PrunescopeError for another file, or none at all."""
        return cls.of(read_plan(_path(path)), path)

    @property
    def table(self) -> Records:
        """One row per layer: what stays of it, and the loss that this adds, in nats a token."""
        from prunescope.analysis.report.records import structs

        return structs("layers", KeptLayer, self.layers)

    @property
    def plot(self) -> AllocationPlots:
        """Figures: `plan.plot.layers()`."""
        from prunescope.analysis.report.allocation_figure import AllocationPlots

        return AllocationPlots(self)

    def save(
        self, folder: Path | str, formats: Sequence[str] | str = ("md", "json", "png")
    ) -> list[Path]:
        """Write plan.md, plan.json, and its picture as png, pdf or svg, into `folder`;
        returns the paths. Raises PrunescopeError for another format."""
        from prunescope.analysis.report.allocation_figure import plan_figure
        from prunescope.analysis.report.markdown import sheet_text
        from prunescope.analysis.report.write import check_formats, write_files

        names = _names(formats)
        check_formats(names, ("md", "json", *_PICTURES))
        files: dict[str, bytes] = {}
        for name in names:
            if name == "md":
                data = sheet_text("Plan of layers", self.__rich__()).encode()
            elif name == "json":
                data = msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
            else:
                data = plan_figure(self, name)
            files[f"plan.{name}"] = data
        return write_files(files, _path(folder))

    def __repr__(self) -> str:
        from prunescope.analysis.report.allocation_tables import target_text

        count = len(self.removed)
        text = f"{target_text(self.target)}, {self.expected.speedup:.2f}× expected"
        text += f", {count} of {len(self.layers)} layers dropped"
        return f"<AllocationPlan of {self.model}: {text}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.allocation_tables import plan_sheet

        where, model = self.__dict__.get("_where", ("plan.json", self.model))
        return plan_sheet(self, where, model=model)


@dataclass(frozen=True, repr=False)
class Replayed(_Tabled):
    """GEMMs that `gemm` replayed alone: `replays` has every time; of a run, `report` is its report
    with what they explain, and None for shapes that were given.

    Examples:
        >>> found = prunescope.gemm(m=128, n=[384, 400, 512], k=576)
        >>> found.table.to_polars()
        >>> found.replays.gemms[0].warm.ns
    """

    replays: Replays
    report: Report | None = None

    @classmethod
    def of(cls, replays: Replays, done: Analysis | None = None) -> Self:
        """Return the result with the report of the run's analysis, if it was one of a run."""
        return cls(replays, None if done is None else Report.of(done))

    @property
    def table(self) -> Records:
        """A row a shape: warm and cold, ns a call with their intervals, and its bound."""
        from prunescope.analysis.report.replay_records import shape_records

        return shape_records(self.replays)

    @property
    def curves(self) -> Records:
        """A row a size of a curve over N or K."""
        from prunescope.analysis.report.replay_records import curve_records

        return curve_records(self.replays)

    @property
    def verdicts(self) -> Records:
        """One row per role and phase of the run: whether its GEMMs lose time alone, too."""
        from prunescope.analysis.report.replay_records import verdict_records

        return verdict_records(self.report)

    @property
    def plot(self) -> ReplayPlots:
        """Figures: `found.plot.curves()`."""
        from prunescope.analysis.report.replay_figure import ReplayPlots

        return ReplayPlots(self.replays, self.report)

    def save(
        self, folder: Path | str, formats: Sequence[str] | str = ("md", "json", "csv", "png")
    ) -> list[Path]:
        """Write gemms.md, gemms.json, gemms.csv, curves.csv, and curves and alignments, where there
        are any, as png, pdf or svg, into `folder`; returns the paths."""
        from prunescope.analysis.report.markdown import sheet_text
        from prunescope.analysis.report.replay_figure import replay_files
        from prunescope.analysis.report.write import check_formats, write_files

        names = _names(formats)
        check_formats(names, ("md", "json", "csv", *_PICTURES))
        files: dict[str, bytes] = {}
        if "md" in names:
            files["gemms.md"] = sheet_text("GEMMs alone", self.__rich__()).encode()
        if "json" in names:
            files["gemms.json"] = msgspec.json.format(msgspec.json.encode(self.to_dict())) + b"\n"
        return write_files(files | replay_files(self.replays, self.report, names), _path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` writes them: those of gemms.json, whether its times are valid,
        and of a run what they explain, by phase."""
        phases = self.report.phases if self.report is not None else {}
        explained = {
            name: msgspec.to_builtins(phase.replay)
            for name, phase in phases.items()
            if phase.replay is not None
        }
        return {
            **plain(self.replays),
            "timing_valid": self.replays.timing_valid,
            **({"explained": explained} if explained else {}),
        }

    def __repr__(self) -> str:
        from prunescope.analysis.report.escape import clean

        shapes, curves = len(self.replays.gemms), len(self.replays.curves)
        valid = "" if self.replays.timing_valid else ", timing not valid"
        where = clean(str(self.replays.device.name))[:80]
        return f"<Replayed: {shapes} shapes and {curves} curves on {where}{valid}>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.replay_tables import replayed

        return replayed(self.replays, self.report)


_PICTURES = ("png", "pdf", "svg")


def _names(formats: Sequence[str] | str) -> list[str]:
    """The names of formats. Raises PrunescopeError for what names none."""
    names = formats.split(",") if isinstance(formats, str) else formats
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PrunescopeError(
            f"formats is {reprlib.repr(formats)}", hint='accepted: "md,json", or a list of names'
        )
    return [name.strip() for name in names]


def _path(given: Path | str) -> Path:
    path = as_path(given)
    if path is None:
        raise PrunescopeError("no path is given", hint="accepted: a path or a text")
    return path


def _same_fields(value: msgspec.Struct, kind: type[T]) -> T:
    made = kind(**{name: getattr(value, name) for name in value.__struct_fields__})
    named: T = by_name(made, kind.__name__)  # a name that is not there gets the nearest one
    return named


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _print(view: RenderableType) -> None:
    from prunescope.output import console_for

    console_for(None).print(view)
