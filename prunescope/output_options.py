"""The options of `analyze` and `check` that say where a result goes, beside its JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from prunescope.analysis.inputs.options import AnalysisOptions
from prunescope.taxonomy.option import Option


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """How figures are printed, and what their labels begin with."""

    width: Annotated[
        str | None,
        Option(
            help="Width that figures are drawn for, whose type then has 6 pt or more: column "
            "(84 mm), page (178 mm, across both columns) or mm; without it, column.",
            metavar="column|page|MM",
        ),
    ] = None
    font: Annotated[Literal["sans", "serif"], Option(help="Typeface of letters in figures.")] = (
        "sans"
    )
    label_prefix: Annotated[
        str,
        Option(
            help="Prefix of every LaTeX label, so that several studies fit into one paper; without "
            "it, none.",
            metavar="WORD",
        ),
    ] = ""

    @property
    def look(self) -> dict[str, Any]:
        """The options as functions take them that write files."""
        return {"width": self.width, "font": self.font, "label_prefix": self.label_prefix}


@dataclass(frozen=True, kw_only=True)
class HistoryOptions:
    """The history that measurements are added to."""

    history: Annotated[
        Path | None,
        Option(
            help="History to add a line of each phase to, which `prunescope history` follows over "
            "commits; without it, none.",
            flag="--history",
            metavar="FILE.jsonl",
        ),
    ] = None
    commit: Annotated[
        str | None,
        Option(
            help="What was measured, for --history; without it, the commit that CI or git names.",
            metavar="NAME",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AnalyzeOutputs(HistoryOptions, FigureOptions):
    """The files that `analyze` writes, and how much it prints."""

    out: Annotated[
        Path | None,
        Option(
            help="Folder to write the report to; without it, RUN/report, and nothing for a trace.",
            metavar="FOLDER",
        ),
    ] = None
    formats: Annotated[
        str | None,
        Option(
            help="Formats of the report, separated by commas: md, html, json, tex, csv, parquet, "
            "perfetto, png, pdf, svg; without it, md, json and html.",
            flag="--format",
            metavar="LIST",
            complete="formats",
        ),
    ] = None
    full: Annotated[
        bool,
        Option(help="Show every table and what was measured; without it, the answer alone."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class CheckOptions(AnalysisOptions, HistoryOptions):
    """What `check` takes of `analyze`, and where the outcome goes."""

    summary: Annotated[
        Path | None,
        Option(
            help="File to append the outcome to as Markdown, such as $GITHUB_STEP_SUMMARY; without "
            "it, none.",
            metavar="FILE.md",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ParetoOutputs(FigureOptions):
    """The files that `pareto` writes."""

    out: Annotated[
        Path | None,
        Option(
            help="Folder to write tables and figures to; without it, FOLDER/pareto.",
            metavar="FOLDER",
        ),
    ] = None
    formats: Annotated[
        str | None,
        Option(
            help="Formats, separated by commas: md, json, tex, csv, png, pdf, svg; without it, md, "
            "json, png and pdf.",
            flag="--format",
            metavar="LIST",
        ),
    ] = None
    figures: Annotated[
        Literal["paper"] | None,
        Option(
            help="Also plot the kinds of figure of the taxonomy's paper, each with its CSV and "
            "caption; without it, frontier, bounds and ledgers alone."
        ),
    ] = None
    gemm: Annotated[
        Path | None,
        Option(
            help="File of replayed GEMMs (`prunescope gemm --json FILE`) for --figures paper; "
            "without it, each gemms*.json in the sweep and the gemms.json of its runs.",
            metavar="FILE",
        ),
    ] = None
