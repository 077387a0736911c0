"""The options of `analyze` and `check` that say where a result goes, beside its JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prunescope.analysis.inputs.options import AnalysisOptions
from prunescope.taxonomy.option import Option


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
class AnalyzeOutputs(HistoryOptions):
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
    label_prefix: Annotated[
        str,
        Option(
            help="Prefix of every LaTeX label, so that several reports fit into one paper; without "
            "it, none.",
            metavar="WORD",
        ),
    ] = ""
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
