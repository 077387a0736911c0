"""Writes the files of a sweep's comparison, and those of a paper's kinds of figure.

Nothing is written before everything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.analysis.paper.gemm_speedups import speedup_curves
from prunescope.analysis.pareto.files import FORMATS, USUAL, pareto_files
from prunescope.analysis.pipeline import TOOL
from prunescope.analysis.report.picture import PICTURES
from prunescope.analysis.report.write import check_formats, write_files
from prunescope.analysis.schema.pareto import Pareto
from prunescope.taxonomy.replays import REPLAYS, Replays, read_replays

if TYPE_CHECKING:
    from prunescope.analysis.paper.paper_files import PaperSet

_MOST_REPLAYS = 16  # files of replayed GEMMs that are looked for in a sweep


def write_pareto(
    pareto: Pareto,
    folder: Path,
    *,
    formats: Sequence[str] = USUAL,
    more: Mapping[str, bytes] | None = None,
    **look: Any,
) -> list[Path]:
    """Write pareto.md, pareto.json, tables of results and figures into a folder, all or none.

    Args:
        pareto: The comparison.
        folder: The folder to write to.
        formats: Which files to write: md, json, tex, csv, and the formats of figures.
        more: Other files to write with them, by name.
        **look: How figures are printed, as `printing_of` takes it: width, font, label_prefix.

    Returns:
        The paths of the files.

    Raises:
        PrunescopeError: A format is unknown, or the folder cannot be written.
    """
    check_formats(formats, FORMATS)
    return write_files({**(more or {}), **pareto_files(pareto, formats, **look)}, folder)


def paper_set(pareto: Pareto, sweep: Path | None, gemm: Path | None = None) -> PaperSet:
    """Return the paper's kinds of figure for a sweep, and those that it has no data for.

    Args:
        pareto: The comparison.
        sweep: The folder of the sweep, whose replayed GEMMs are used; None if there is none.
        gemm: A file of replayed GEMMs to use instead.

    Raises:
        PrunescopeError: `gemm` is not a file of replayed GEMMs.
    """
    from prunescope.analysis.paper import paper_files as paper

    replays = [read_replays(gemm)] if gemm is not None else replays_in(sweep)
    return paper.paper_set(pareto, speedup_curves(replays))


def paper_files(figures: PaperSet, formats: Sequence[str] = USUAL) -> dict[str, bytes]:
    """Return the files of the paper's kinds of figure.

    Args:
        figures: The figures, by `paper_set`.
        formats: The formats to write; those that are no formats of figures are ignored.
    """
    from prunescope.analysis.paper import paper_files as paper

    pictures = [name for name in dict.fromkeys(formats) if name in PICTURES]
    return paper.paper_files(figures, TOOL, pictures)


def replays_in(sweep: Path | None) -> list[Replays]:
    """Return the replayed GEMMs in a sweep's folder and in its runs, in order of name."""
    if sweep is None:
        return []
    stem, _, ending = REPLAYS.rpartition(".")
    paths = [*sorted(sweep.glob(f"{stem}*.{ending}")), *sorted(sweep.glob(f"runs/*/{REPLAYS}"))]
    return [read_replays(path) for path in paths[:_MOST_REPLAYS] if path.is_file()]
