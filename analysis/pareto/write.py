"""Files of a sweep's comparison: pareto.md, pareto.json and figures in its folder.

Nothing is written before everything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.write import check_formats, write_files
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.pareto import Pareto

FORMATS = ("md", "json", "png", "pdf", "svg")


def write_pareto(
    found: Pareto, folder: Path, *, formats: Sequence[str] = ("md", "json", "png", "pdf")
) -> list[Path]:
    """Write pareto.md, pareto.json and figures into `folder`, all or none; returns the paths.

    Raises PrunescopeError for an unknown format or a folder that cannot be written.
    """
    check_formats(formats, FORMATS)
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(formats):
        if name == "md":
            files["pareto.md"] = render_pareto(found, figures="png" in formats).encode()
        elif name == "json":
            files["pareto.json"] = to_json(found)
        else:
            from prunescope.analysis.report.pareto_figures import pareto_figures

            files |= pareto_figures(found, name)
    return write_files(files, folder)


def to_json(found: Pareto) -> bytes:
    """The comparison as UTF-8 JSON, two-space indented."""
    return json_bytes(found)
