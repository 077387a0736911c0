"""Replayed GEMMs as files: in, Replays and the report of their run; out, CSV and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from prunescope.analysis.report.escape import cell
from prunescope.analysis.report.figure_style import drawing, saved_as
from prunescope.analysis.report.replay_figure import replay_figure
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.replays import ReplayedGemm, Replays, StepCurve

_ENDINGS = ("png", "pdf", "svg")
_SHAPE = ["phase", "role", "batch", "m", "n", "k", "dtype"]
_OF_GEMM = [*_SHAPE, "align", "ideal_ns", "bound", "share_of_bound", "kernel", "tile"]
_TIMES = ["warm_ns", "warm_low", "warm_high", "cold_ns", "cold_low", "cold_high"]
_OF_CURVE = ["phase", "role", "axis", "m", "n", "k", "dtype", "width", "step_ns", "base_ns"]


def replay_files(replays: Replays, report: Report | None) -> dict[str, bytes]:
    """File name to bytes: gemms.csv and curves.csv; gemms.png, .pdf and .svg where there are curves
    or alignments."""
    aligned = [
        one
        for phase in (report.phases.values() if report is not None else ())
        for one in (phase.replay.alignments if phase.replay is not None else ())
    ]
    files = {"gemms.csv": _gemms_csv(replays.gemms), "curves.csv": _curves_csv(replays.curves)}
    with drawing():
        figure = replay_figure(replays.curves, aligned, replays.device.name or "")
        if figure is not None:
            for ending, data in saved_as(figure, _ENDINGS).items():
                files[f"gemms.{ending}"] = data
    return files


def _gemms_csv(gemms: Iterable[ReplayedGemm]) -> bytes:
    rows = []
    for one in gemms:
        times = [
            value
            for state in (one.warm, one.cold)
            for value in ((state.ns, *(state.ci95 or (None, None))) if state else (None,) * 3)
        ]
        rows.append([" ".join(one.reasons), *(getattr(one, name) for name in _OF_GEMM), *times])
    return _csv(["reasons", *_OF_GEMM, *_TIMES], rows)


def _curves_csv(curves: Iterable[StepCurve]) -> bytes:
    rows = [
        [*(getattr(one, name) for name in _OF_CURVE), size, ns]
        for one in curves
        for size, ns in zip(one.sizes, one.ns, strict=True)
    ]
    return _csv([*_OF_CURVE, "size", "ns"], rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([cell(one) if isinstance(one, str) else one for one in row] for row in rows)
    return out.getvalue().encode()
