"""The files of a sweep's comparison: pareto.md, pareto.json, tables of results and figures.

In: a Pareto and formats. Out: bytes by file name, for a folder or for a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunescope.analysis.report.appendix import checklist_latex
from prunescope.analysis.report.checklist import sweep_checklist
from prunescope.analysis.report.latex_head import head
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.picture import PICTURES, files_of_pictures
from prunescope.analysis.report.printing import printed_as, printing, printing_of
from prunescope.analysis.report.results_latex import results_files
from prunescope.analysis.report.results_table import result_tables
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.report import TOOL

FORMATS = ("md", "json", "tex", "csv", *PICTURES)
USUAL = ("md", "json", "png", "pdf")


def pareto_files(pareto: Pareto, formats: Sequence[str] = USUAL, **look: Any) -> dict[str, bytes]:
    """Return the files of a comparison, from file name to bytes.

    Args:
        pareto: The comparison.
        formats: Some of FORMATS; others are ignored.
        **look: How figures are printed, as `printing_of` takes it: width, font, label_prefix.
    """
    files: dict[str, bytes] = {}
    with printed_as(printing_of(formats, **look)):
        pictures: dict[str, bytes] = {}
        if {*PICTURES, "tex", "csv"} & set(formats):
            from prunescope.analysis.report.pareto_figures import pareto_pictures

            pictures = files_of_pictures(pareto_pictures(pareto), formats, TOOL)
        if "md" in formats:
            files["pareto.md"] = render_pareto(pareto, figures=pictures).encode()
        if "json" in formats:
            files["pareto.json"] = to_json(pareto)
        files |= results_files(result_tables(pareto), formats, TOOL)
        if "tex" in formats:
            text = checklist_latex(sweep_checklist(pareto), printing().label_prefix)
            files["checklist.tex"] = f"{head(TOOL)}\n{text}".encode()
    return files | pictures


def to_json(pareto: Pareto) -> bytes:
    """Return the comparison as UTF-8 JSON, indented by two spaces."""
    return json_bytes(pareto)
