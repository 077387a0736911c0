"""Files of a sweep's comparison: pareto.md, pareto.json and figures in its folder.

Nothing is written before everything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.analysis.pareto.gemm_speedups import speedup_curves
from prunescope.analysis.pipeline import TOOL
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.write import check_formats, write_files
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.pareto import Pareto
from prunescope.taxonomy.replays import REPLAYS, Replays, read_replays

if TYPE_CHECKING:
    from prunescope.analysis.report.paper_figures import PaperSet

PICTURES = ("png", "pdf", "svg")
FORMATS = ("md", "json", *PICTURES)
USUAL = ("md", "json", "png", "pdf")
_MOST_REPLAYS = 16  # files of replayed GEMMs that are looked for in a sweep


def write_pareto(
    found: Pareto,
    folder: Path,
    *,
    formats: Sequence[str] = USUAL,
    more: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write pareto.md, pareto.json, figures, and `more` into `folder`, all or none; returns the
    paths.

    Raises PrunescopeError for an unknown format or a folder that cannot be written.
    """
    check_formats(formats, FORMATS)
    files: dict[str, bytes] = dict(more or {})
    for name in dict.fromkeys(formats):
        if name == "md":
            files["pareto.md"] = render_pareto(found, figures="png" in formats).encode()
        elif name == "json":
            files["pareto.json"] = to_json(found)
    if pictures := [name for name in dict.fromkeys(formats) if name in PICTURES]:
        from prunescope.analysis.report.pareto_figures import pareto_figures

        files |= pareto_figures(found, *pictures)
    return write_files(files, folder)


def paper_set(found: Pareto, sweep: Path | None, gemm: Path | None = None) -> PaperSet:
    """The paper's kinds of figure of a sweep, and those that it has no data for. GEMMs are those of
    the file `gemm`, else of each gemms*.json in the sweep's folder and of gemms.json in its runs.

    Raises PrunescopeError where `gemm` is no file of replayed GEMMs.
    """
    from prunescope.analysis.report import paper_figures

    replays = [read_replays(gemm)] if gemm is not None else replays_in(sweep)
    return paper_figures.paper_set(found, speedup_curves(replays))


def paper_files(found: PaperSet, formats: Sequence[str] = USUAL) -> dict[str, bytes]:
    """The files of those figures, pictures in the formats that are any."""
    from prunescope.analysis.report import paper_figures

    pictures = [name for name in dict.fromkeys(formats) if name in PICTURES]
    return paper_figures.paper_files(found, TOOL, pictures)


def replays_in(sweep: Path | None) -> list[Replays]:
    """The replayed GEMMs of a sweep's folder and of its runs, in the order of their names."""
    if sweep is None:
        return []
    stem, _, ending = REPLAYS.rpartition(".")
    paths = [*sorted(sweep.glob(f"{stem}*.{ending}")), *sorted(sweep.glob(f"runs/*/{REPLAYS}"))]
    return [read_replays(path) for path in paths[:_MOST_REPLAYS] if path.is_file()]


def to_json(found: Pareto) -> bytes:
    """The comparison as UTF-8 JSON, two-space indented."""
    return json_bytes(found)
