"""Replayed GEMMs as files: in, Replays and the report of their run; out, CSV and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from prunescope.analysis.report.escape import cell
from prunescope.analysis.report.figure_style import drawing, saved_as
from prunescope.analysis.report.records import Records
from prunescope.analysis.report.replay_figure import replay_figure
from prunescope.analysis.report.replay_records import curve_records, shape_records
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import Replays

PICTURES = ("png", "pdf", "svg")


def replay_files(
    replays: Replays, report: Report | None, formats: Sequence[str] = ("csv", *PICTURES)
) -> dict[str, bytes]:
    """File name to bytes: gemms.csv and curves.csv; gemms.png, .pdf and .svg where there are curves
    or alignments."""
    files: dict[str, bytes] = {}
    if "csv" in formats:
        files["gemms.csv"] = _csv(shape_records(replays))
        files["curves.csv"] = _csv(curve_records(replays))
    endings = [name for name in PICTURES if name in formats]
    if endings:
        with drawing():
            figure = _figure(replays, report)
            if figure is not None:
                for ending, data in saved_as(figure, endings).items():
                    files[f"gemms.{ending}"] = data
    return files


class ReplayPlots:
    """The figure of replayed GEMMs, as a matplotlib Figure."""

    def __init__(self, replays: Replays, report: Report | None) -> None:
        self._of = replays, report

    def curves(self) -> Figure:
        """Time over N or K, and time a kept number at each alignment. Raises PrunescopeError where
        neither was replayed."""
        with drawing():
            figure = _figure(*self._of)
        if figure is None:
            raise PrunescopeError(
                "no GEMM was replayed over N or K, or at several alignments",
                hint="give four sizes of n= or k= or more, or a run whose GEMMs were pruned",
            )
        return figure


def _figure(replays: Replays, report: Report | None) -> Figure | None:
    aligned = [
        one
        for phase in (report.phases.values() if report is not None else ())
        for one in (phase.replay.alignments if phase.replay is not None else ())
    ]
    device = replays.device.name or ""
    return replay_figure(replays.curves, aligned, device, replays.disturbed)


def _csv(table: Records) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table:
        writer.writerow([cell(one) if isinstance(one, str) else one for one in row.values()])
    return out.getvalue().encode()
