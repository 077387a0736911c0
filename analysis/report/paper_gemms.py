"""The paper's study of GEMM shapes: the speedup of one GEMM over the share of N or K that is gone.

In: Replays of `prunescope gemm`. The largest size of a curve is the dense one; tiles and waves make
steps where N shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report import evidence
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import ground, no_evidence
from prunescope.analysis.report.paper_figure import COLUMN, NotDrawn, PaperFigure, Value, page
from prunescope.analysis.report.pareto_figures import legend_below
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.replays import Replays, StepCurve

_MOST = 6  # curves: three rows of two
_MEASURED, _LAW = "#0072B2", "#D55E00"
_SIZES = {"N": "output features", "K": "input features"}


def gemm_steps(replays: Sequence[Replays]) -> PaperFigure | NotDrawn:
    """The steps of GEMMs that were replayed alone over N or K."""
    curves = [(curve, one) for one in replays for curve in one.curves if len(curve.sizes) > 1]
    name, title = "gemms", "GEMM steps"
    if not curves:
        return NotDrawn(
            name=name,
            reason="no GEMM was replayed over N or K",
            key="run `prunescope gemm RUN` on a run of the sweep, or give --gemm FILE of "
            "`prunescope gemm --m M --n LOW:HIGH:STEP --k K --json FILE`",
        )
    devices = dict.fromkeys(str(one.device.name) for _, one in curves)
    samples = " and ".join(
        dict.fromkeys(
            f"n = {one.repeats} samples in {one.placements} placements" for _, one in curves
        )
    )
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title}: speedup of one GEMM [M, K] × [K, N] alone, warm operands, over the share"
        " of N or K that is gone (points), in proportion to the size (dotted) and by roofline "
        f"(dashed); steps of tiles and waves where they describe it better than a line. "
        f"{', '.join(devices)}; {samples} of each size, the median over placements; whiskers: 95 % "
        "intervals, cut where they leave the panel.",
        columns=[
            "role",
            "phase",
            "axis",
            "m",
            "n",
            "k",
            "dtype",
            "size",
            "gone",
            "ns",
            "low",
            "high",
            "speedup",
            "proportional",
            "roofline_bound",
            "width",
            "disturbed",
        ],
        rows=[row for curve, one in curves for row in _rows(curve, one)],
        draw=lambda: _figure(curves[:_MOST]),
    )


def _gemm(curve: StepCurve, size: int) -> Gemm:
    n, k = (size, curve.k) if curve.axis == "N" else (curve.n, size)
    return Gemm(curve.m, n or 1, k or 1, curve.batch)


def _intervals(curve: StepCurve, replays: Replays) -> dict[int, Sequence[float]]:
    """The 95 % interval of the time of each size; of a file without, of those sizes that were
    replayed as shapes of their own."""
    own = zip(curve.sizes, curve.ci95, strict=False)
    if any(curve.ci95):
        return {size: ends for size, ends in own if ends is not None}
    found = {
        (one.gemm, one.dtype): one.warm.ci95
        for one in replays.gemms
        if one.warm is not None and one.warm.ci95 is not None
    }
    known = {size: found.get((_gemm(curve, size), curve.dtype)) for size in curve.sizes}
    return {size: ends for size, ends in known.items() if ends is not None}


def _ideals(curve: StepCurve, replays: Replays) -> dict[int, float]:
    """The roofline time of each size; empty where a peak is not known."""
    found = {s: replays.peaks.ideal_ns(_gemm(curve, s), curve.dtype) for s in curve.sizes}
    return {size: one[0] for size, one in found.items() if one is not None}


def _rows(curve: StepCurve, replays: Replays) -> list[list[Value]]:
    times = dict(sorted(zip(curve.sizes, curve.ns, strict=True)))
    dense = max(times)
    ends, ideals = _intervals(curve, replays), _ideals(curve, replays)
    return [
        [
            curve.role,
            curve.phase,
            curve.axis,
            curve.m,
            _gemm(curve, size).n,
            _gemm(curve, size).k,
            curve.dtype,
            size,
            1 - size / dense,
            ns,
            *(ends.get(size) or (None, None)),
            times[dense] / ns,
            dense / size,
            ideals[dense] / ideals[size] if size in ideals else None,
            curve.width,
            ", ".join(replays.disturbed),
        ]
        for size, ns in times.items()
    ]


def _figure(curves: Sequence[tuple[StepCurve, Replays]]) -> Figure:
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, grid = page(rows, columns, (COLUMN if columns > 1 else 1.3 * COLUMN, 2.1))
    every = [axes for row in grid for axes in row]
    for axes, (curve, replays) in zip(every, curves, strict=False):
        _panel(axes, curve, replays)
    for axes in every[len(curves) :]:
        axes.set_visible(False)
    black: dict[str, Any] = {"color": "black", "linewidth": 0.8}
    handles: list[Any] = [
        Line2D([], [], color=_MEASURED, marker="o", markersize=3, linewidth=0.6, label="measured"),
        Line2D([], [], linestyle=":", label="in proportion to the size", **black),
    ]
    if any(len(_ideals(curve, one)) == len(curve.sizes) for curve, one in curves):
        handles.append(Line2D([], [], linestyle=(0, (4, 2)), label="roofline", **black))
    if any(curve.width for curve, _ in curves):
        handles.append(Line2D([], [], color=_LAW, linewidth=0.9, label="steps"))
    disturbed = dict.fromkeys(why for _, one in curves for why in one.disturbed)
    if disturbed:
        words = f"disturbed by {', '.join(disturbed)}"
        handles.append(no_evidence([evidence.NOT_VALID_TIMING], clean(words)))
    legend_below(figure, handles, columns=4)
    return figure


def _panel(axes: Axes, curve: StepCurve, replays: Replays) -> None:
    times = dict(sorted(zip(curve.sizes, curve.ns, strict=True), reverse=True))
    dense = max(times)
    gone = [1 - size / dense for size in times]
    if replays.disturbed:
        axes.axvspan(-0.02, 1.02, zorder=-1, **ground([evidence.NOT_VALID_TIMING]))
    axes.plot(
        gone,
        [times[dense] / ns for ns in times.values()],
        color=_MEASURED,
        marker="o",
        markersize=3,
        linewidth=0.6,
    )
    for size, ends in _intervals(curve, replays).items():
        at = 1 - size / dense
        low, high = (times[dense] / end for end in reversed(ends))
        axes.plot([at, at], [low, high], color=_MEASURED, linewidth=0.6)
    axes.plot(gone, [dense / size for size in times], color="black", linewidth=0.8, linestyle=":")
    ideals = _ideals(curve, replays)
    if len(ideals) == len(times):
        bound = [ideals[dense] / ideals[size] for size in times]
        axes.plot(gone, bound, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    if curve.width and curve.step_ns is not None and curve.base_ns is not None:
        fine = range(min(times), dense + 1)
        law = [curve.base_ns + curve.step_ns * math.ceil(size / curve.width) for size in fine]
        axes.plot(
            [1 - size / dense for size in fine],
            [times[dense] / ns for ns in law],
            color=_LAW,
            linewidth=0.9,
            zorder=1,
        )
    highest = max(*(times[dense] / ns for ns in times.values()), dense / min(times))
    axes.set_ylim(0, 1.06 * highest)
    axes.set_xlim(-0.02, max(gone) + 0.02)
    fixed = f"K = {curve.k:,}" if curve.axis == "N" else f"N = {curve.n:,}"
    what = [curve.role or "GEMM", *([curve.phase] if curve.phase else [])]
    axes.set_title(
        clean(f"{', '.join(what)}: M = {curve.m:,}, {fixed}, {curve.dtype}"), loc="left", fontsize=7
    )
    axes.set_xlabel(f"share of {curve.axis} = {dense:,} {_SIZES[curve.axis]} that is gone")
    axes.set_ylabel("speedup over the largest size")
