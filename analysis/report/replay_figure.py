"""GEMMs replayed alone as files: in, Replays and the report of their run; out, CSV and a figure.

The figure: time of a call over N or K, and time per kept number (a kept channel
or head) at each alignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report import titles
from prunescope.analysis.report.escape import clean, csv_text
from prunescope.analysis.report.figure_style import (
    PARITY,
    ground,
    legend_below,
    line_entry,
    no_evidence,
    page_strips,
    plotting,
)
from prunescope.analysis.report.looks import SERIES
from prunescope.analysis.report.picture import PICTURES, Picture, files_of_pictures
from prunescope.analysis.report.records import Records
from prunescope.analysis.report.replay_records import curve_records, shape_records
from prunescope.analysis.schema.replay import AlignedTime
from prunescope.analysis.schema.report import TOOL, Report
from prunescope.analysis.summary import evidence
from prunescope.taxonomy import numbers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import Replays, StepCurve
from prunescope.taxonomy.words import when

_MEASURED: dict[str, Any] = {
    "color": SERIES[0].colour, "marker": "o", "markersize": 2, "linewidth": 0.5,
}  # fmt: skip
_STEPS: dict[str, Any] = {"color": SERIES[1].colour, "linewidth": 0.9}
_MOST_CURVES = 4
_TITLE = "GEMMs replayed alone, operands warm"


def replay_figure(
    curves: Sequence[StepCurve],
    alignments: Sequence[AlignedTime],
    subject: str,
    disturbed: Sequence[str] = (),
) -> Figure | None:
    """Plot the time of GEMMs that were replayed alone.

    Args:
        curves: Times of a call over N or K, with the steps that describe them. The first four are
            plotted.
        alignments: Times per kept number at each alignment; they are plotted below the curves.
        subject: The device, or model, method and phase, for the title.
        disturbed: By what the times were disturbed, if they are not valid.

    Returns:
        The figure; None if there are neither curves nor alignments.
    """
    shown = curves[:_MOST_CURVES]
    count = len(shown) + bool(alignments)
    if not count:
        return None
    figure, strips = page_strips(0.4 + 1.5 * count, _TITLE, subject, count)
    for axes, curve in zip(strips, shown, strict=False):
        _plot_curve(axes, curve)
    entries: list[Any] = [line_entry("measured", **_MEASURED)] if shown else []
    if any(curve.width for curve in shown):
        entries.append(line_entry("steps", **_STEPS))
    entries += _plot_alignments(strips[-1], alignments) if alignments else []
    if disturbed:
        reasons = [evidence.NOT_VALID_TIMING]
        for axes in strips:
            ends = axes.get_xlim()
            axes.axvspan(*ends, zorder=-1, **ground(reasons))
            axes.set_xlim(ends)
        words = clean(f"disturbed by {', '.join(disturbed)}")
        entries.append(no_evidence(reasons, words))
    legend_below(figure, entries)
    return figure


def steps_ns(curve: StepCurve, first: int, last: int) -> tuple[range, list[float]] | None:
    """Return the sizes from `first` to `last` and the time (ns) that the steps give each of them.

    None means that no steps describe the curve.
    """
    if not curve.width or curve.step_ns is None or curve.base_ns is None:
        return None
    sizes = range(first, last + 1)
    return sizes, [curve.base_ns + curve.step_ns * math.ceil(n / curve.width) for n in sizes]


def _plot_curve(axes: Axes, curve: StepCurve) -> None:
    """Plot the measured times of one GEMM over N or K, and the steps that describe them."""
    unit = numbers.scale(curve.ns)
    sizes, ns = zip(*sorted(zip(curve.sizes, curve.ns, strict=True)), strict=True)
    axes.plot(sizes, [y / unit.per for y in ns], **_MEASURED)
    fixed = f"K = {curve.k}" if curve.axis == "N" else f"N = {curve.n}"
    law = "no steps"
    if steps := steps_ns(curve, sizes[0], sizes[-1]):
        law = f"steps of {curve.width}"
        times = [y / unit.per for y in steps[1]]
        axes.plot(steps[0], times, **_STEPS)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{unit.unit} a call")
    role = titles.short(curve.role or "")
    facts = f"{role}, M = {curve.m}, {fixed}: {law}".removeprefix(", ")
    axes.set_xlabel(f"{curve.axis}; {facts}")


def _plot_alignments(axes: Axes, times: Sequence[AlignedTime]) -> list[Any]:
    """Plot the time per kept number of each pruned dimension over the alignment.

    Return the entries of the legend.
    """
    by_dimension: dict[tuple[str, str, int], dict[int, float]] = {}
    for time in times:
        by_dimension.setdefault((time.role, time.axis, time.now), {})[time.align] = time.relative
    aligns = sorted({time.align for time in times})
    shown = list(by_dimension.items())[: len(SERIES)]
    entries = []
    for series, ((role, axis, now), relative) in zip(SERIES, shown, strict=False):
        look: dict[str, Any] = {"color": series.colour, "marker": series.marker}
        look |= {"markersize": 3, "linewidth": 0.9}
        values = [relative.get(align, math.nan) for align in aligns]
        label = f"{titles.short(role)} {axis} = {now}"
        axes.plot(range(len(aligns)), values, **look)
        entries.append(line_entry(label, **look))
    axes.axhline(1.0, **PARITY)
    axes.set_xticks(range(len(aligns)), [str(align) for align in aligns])
    axes.set_ylim(0, 1.05 * max(1.0, *(time.relative for time in times)))
    axes.set(xlabel="alignment of the kept dimension", ylabel="time a kept number")
    return entries


def replay_files(
    replays: Replays, report: Report | None, formats: Sequence[str] = ("csv", "tex", *PICTURES)
) -> dict[str, bytes]:
    """Return the files of replayed GEMMs, from file name to bytes.

    Args:
        replays: The replayed GEMMs.
        report: The report of their run, which has the times at each alignment; None without a run.
        formats: Of csv, png, pdf, svg and tex. CSV gives gemms.csv and curves.csv. There are
            pictures and captions where there are curves or alignments.
    """
    files: dict[str, bytes] = {}
    if "csv" in formats:
        files["gemms.csv"] = _csv(shape_records(replays))
        files["curves.csv"] = _csv(curve_records(replays))
    pictures = replay_pictures(replays, report)
    return files | files_of_pictures(pictures, [name for name in formats if name != "csv"], TOOL)


def replay_pictures(replays: Replays, report: Report | None) -> Iterator[Picture]:
    """Yield the figures of replayed GEMMs, each of at most four curves; alignments are last."""
    aligned, device = _alignments(report), clean(replays.device.name or "unknown device")
    curves = replays.curves
    pages = [curves[i : i + _MOST_CURVES] for i in range(0, len(curves), _MOST_CURVES)]
    for i, page in enumerate(pages or ([[]] if aligned else [])):
        below = aligned if i == len(pages or [[]]) - 1 else []
        formats = dict.fromkeys(curve.dtype for curve in page or replays.gemms)
        facts = [device, f"{replays.device.threads} threads" if replays.device.threads else ""]
        words = [
            "time of a call over N or K" if page else "",
            "time a kept number over the alignment, relative to the dense one" if below else "",
        ]
        told = (
            f"{titles.short(curve.role or 'time')} over {curve.axis}: "
            f"{'no steps' if curve.width is None else f'steps of {curve.width}'}"
            for curve in page
        )
        disturbed = clean(", ".join(replays.disturbed))
        hatched = f"Hatched: {evidence.NOT_VALID_TIMING}, disturbed by {disturbed}. "
        yield Picture(
            stem="gemms" if i == 0 else f"gemms-{i + 1}",
            title=_TITLE,
            caption=f"{_TITLE}: {'; '.join(filter(None, words))}. "
            f"{', '.join(filter(None, [*facts, *formats]))}. {when(bool(disturbed), hatched)}"
            f"Geometric means over {replays.placements} placements of medians, n = "
            f"{replays.repeats} samples of each shape.",
            alt=f"Curves: {'; '.join(told) or 'none'}; {len(below)} times at alignments.",
            plot=partial(replay_figure, page, below, device, replays.disturbed),
        )


def _alignments(report: Report | None) -> list[AlignedTime]:
    phases = report.phases.values() if report is not None else ()
    return [time for phase in phases if phase.replay for time in phase.replay.alignments]


class ReplayPlots:
    """The figure of replayed GEMMs, as a matplotlib Figure."""

    def __init__(self, replays: Replays, report: Report | None) -> None:
        self._inputs = replays, report

    def curves(self) -> Figure:
        """Plot time over N or K, and time per kept number at each alignment.

        Raises:
            PrunescopeError: No GEMM was replayed at several sizes or alignments.
        """
        with plotting():
            figure = _figure(*self._inputs)
        if figure is None:
            raise PrunescopeError(
                "no GEMM was replayed over N or K, or at several alignments",
                hint="give four sizes of n= or k= or more, or a run whose GEMMs were pruned",
            )
        return figure


def _figure(replays: Replays, report: Report | None) -> Figure | None:
    """Plot all replayed GEMMs of a file."""
    subject = clean(replays.device.name or "")
    return replay_figure(replays.curves, _alignments(report), subject, replays.disturbed)


def _csv(table: Records) -> bytes:
    return csv_text(table.columns, (row.values() for row in table), quoted=False).encode()
