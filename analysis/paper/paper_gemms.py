"""The paper's study of GEMM shapes: the speedup of one GEMM over the removed share of N or K.

In: speedups of GEMMs that `prunescope gemm` replayed alone. The largest size of a curve is the
dense one; tiles and waves make steps where N shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.paper.paper_figure import (
    MissingFigure,
    fields,
    interval_ends,
)
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    DOTTED,
    draw_interval,
    ground,
    legend_below,
    line_entry,
    most_panels,
    no_evidence,
    panel_axes,
)
from prunescope.analysis.report.looks import SERIES
from prunescope.analysis.report.picture import Picture, Row
from prunescope.analysis.report.replay_figure import steps_ns
from prunescope.analysis.schema.replay import SpeedupCurve
from prunescope.analysis.summary import evidence

_MOST, _HEIGHT = 6, 2.1  # curves; inches of a panel
_MEASURED: dict[str, Any] = {
    "color": SERIES[0].colour, "marker": "o", "markersize": 3, "linewidth": 0.6,
}  # fmt: skip
_ROOFLINE: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2))}
_STEPS: dict[str, Any] = {"color": SERIES[1].colour, "linewidth": 0.9}
_SIZES = {"N": "output features", "K": "input features"}


def gemm_steps(curves: Sequence[SpeedupCurve]) -> Picture | MissingFigure:
    """Return the figure of GEMMs that were replayed alone over N or K."""
    name, title = "gemms", "GEMM steps"
    if not curves:
        return MissingFigure(
            name,
            "no GEMM was replayed over N or K",
            "run `prunescope gemm RUN` on a run of the sweep, or give --gemm FILE of "
            "`prunescope gemm --m M --n LOW:HIGH:STEP --k K --json FILE`",
        )
    devices = dict.fromkeys(str(curve.device) for curve in curves)
    samples = " and ".join(
        dict.fromkeys(f"n = {c.repeats} samples in {c.placements} placements" for c in curves)
    )
    disturbed, count = _disturbed(curves), sum(not curve.timing_valid for curve in curves)
    hatched = f" Hatched: {count} of {len(curves)} curves, {disturbed}: no evidence."
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Curves of {len(curves)} GEMMs over the removed share of one dimension.",
        caption=f"{title}: speedup of one GEMM [M, K] × [K, N] alone, warm operands, over the share"
        " of N or K that is removed (points), in proportion to the size (dotted) and by roofline "
        f"(dashed); steps of tiles and waves where they describe it better than a line. "
        f"{', '.join(devices)}; {samples} of each size, the ratio of geometric means over "
        "placements of medians; whiskers: its 95 % interval, with the noise of both times, cut "
        f"where it leaves the panel.{hatched if disturbed else ''}",
        rows=[row for curve in curves for row in _rows(curve)],
        plot=lambda: _figure(curves[: min(_MOST, most_panels(_HEIGHT))]),
    )


def _disturbed(curves: Sequence[SpeedupCurve]) -> str:
    """Return by what the curves were disturbed; empty if by nothing."""
    reasons = dict.fromkeys(reason for curve in curves for reason in curve.disturbed)
    return f"disturbed by {', '.join(reasons)}" if reasons else ""


def _rows(speedup: SpeedupCurve) -> list[Row]:
    curve, dense = speedup.curve, speedup.points[-1]
    return [
        {
            **fields(curve, "role", "phase", "axis", "m"),
            "n": curve.gemm(point.size).n,
            "k": curve.gemm(point.size).k,
            "dtype": curve.dtype,
            **fields(point, "size", "gone", "ns"),
            **interval_ends(point.ci95),
            "speedup": point.speedup,
            **interval_ends(point.speedup_ci95, "speedup_"),
            "proportional": dense.size / point.size,
            "roofline_bound": point.roofline,
            "width": curve.width,
            "timing_valid": speedup.timing_valid,
            "disturbed": ", ".join(speedup.disturbed),
        }
        for point in speedup.points
    ]


def _has_roofline(speedup: SpeedupCurve) -> bool:
    return all(point.roofline is not None for point in speedup.points)


def _figure(curves: Sequence[SpeedupCurve]) -> Figure:
    figure, every = panel_axes(len(curves), _HEIGHT)
    for axes, speedup in zip(every, curves, strict=True):
        _plot_gemm(axes, speedup)
    entries: list[Any] = [
        line_entry("measured", **_MEASURED),
        line_entry("in proportion to the size", **DOTTED),
    ]
    if any(map(_has_roofline, curves)):
        entries.append(line_entry("roofline", **_ROOFLINE))
    if any(speedup.curve.width for speedup in curves):
        entries.append(line_entry("steps", **_STEPS))
    if words := _disturbed(curves):
        entries.append(no_evidence([evidence.NOT_VALID_TIMING], clean(words)))
    legend_below(figure, entries)
    return figure


def _plot_gemm(axes: Axes, speedup: SpeedupCurve) -> None:
    """Plot the speedup of one GEMM over the removed share of one axis, with its bounds."""
    curve, points, dense = speedup.curve, speedup.points, speedup.points[-1]
    removed = [point.gone for point in points]
    if not speedup.timing_valid:
        axes.axvspan(-0.02, 1.02, zorder=-1, **ground([evidence.NOT_VALID_TIMING]))
    measured = [point.speedup for point in points]
    axes.plot(removed, measured, **_MEASURED)
    for point in points:
        draw_interval(axes, point.gone, point.speedup_ci95, color=SERIES[0].colour, linewidth=0.6)
    proportional = [dense.size / point.size for point in points]
    axes.plot(removed, proportional, **DOTTED)
    if _has_roofline(speedup):
        axes.plot(removed, [point.roofline or 0.0 for point in points], **_ROOFLINE)
    if steps := steps_ns(curve, points[0].size, dense.size):
        shares = [1 - size / dense.size for size in steps[0]]
        axes.plot(shares, [dense.ns / ns for ns in steps[1]], zorder=1, **_STEPS)
    axes.set(ylim=(0, 1.06 * max(*measured, *proportional)), xlim=(-0.02, max(removed) + 0.02))
    fixed = f"K = {curve.k:,}" if curve.axis == "N" else f"N = {curve.n:,}"
    names = ", ".join([curve.role or "GEMM", *([curve.phase] if curve.phase else [])])
    title = clean(f"{names}: M = {curve.m:,}, {fixed}, {curve.dtype}")
    axes.set_title(title, loc="left")
    axes.set_xlabel(f"share of {curve.axis} = {dense.size:,} {_SIZES[curve.axis]} that is removed")
    axes.set_ylabel("speedup over the largest size")
