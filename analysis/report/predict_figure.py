"""The curves of a prediction: in, `curves` of the JSON; out, PNG, PDF or SVG bytes, and a CSV.

A panel a phase: expected speedup over sparsity, one colour a method; its roofline is dotted. The
range of the guessed costs is a band if a phase has a single method.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report.escape import clean, csv_text
from prunescope.analysis.report.figure_style import (
    CURVE_MARKERS,
    CURVES,
    PARITY,
    blank_figure,
    hide_frame,
    line_entry,
    picture_files,
    plotting,
)
from prunescope.analysis.schema.prediction import Prediction
from prunescope.taxonomy.errors import PrunescopeError

Curves = dict[str, dict[str, dict[str, list[float]]]]
_WIDTH, _HEIGHT, _LEGEND = 2.6, 2.3, 1.3  # inches: a panel, and the legend next to them
_GREY = "#555555"
_DOTS: dict[str, Any] = {"linewidth": 0.7, "markersize": 2}  # of the roofline


def curve_files(values: dict[str, Any]) -> dict[str, bytes]:
    """Return curves.png, .pdf, .svg and .csv, from file name to bytes.

    Args:
        values: The plain values of `predict --json`.
    """
    result = msgspec.convert(values, Prediction)
    files = picture_files("curves.{}".format, partial(_curves, result), ("png", "pdf", "svg"))
    return {**files, "curves.csv": curves_csv(result.curves)}


def curves_figure(values: dict[str, Any]) -> Figure:
    """Plot the curves of a prediction.

    Args:
        values: The plain values of `predict --json`.

    Raises:
        PrunescopeError: There are no curves: the values are of a ranking, of families from a run,
            or of a dense model alone.
    """
    if not values.get("curves"):
        raise PrunescopeError(
            "there is no curve over sparsity to plot",
            hint="predict with method= one family or several, and sparsity= one value or several",
        )
    with plotting():
        return _curves(msgspec.convert(values, Prediction))


def _curves(result: Prediction) -> Figure:
    """Plot all phases. Everything is placed in inches, so that no label is cut."""
    curves: Curves = result.curves
    width = _WIDTH * len(curves) + _LEGEND
    figure = blank_figure(width, _HEIGHT, layout=None)
    known = list(dict.fromkeys(name for methods in curves.values() for name in methods))
    for i, (phase, methods) in enumerate(curves.items()):
        left = (_WIDTH * i + 0.5) / width
        box = (left, 0.42 / _HEIGHT, (_WIDTH - 0.62) / width, (_HEIGHT - 0.8) / _HEIGHT)
        axes = figure.add_axes(box)
        _plot_phase(axes, methods, known)
        axes.set_title(_title(result, phase), fontsize=7)
        if i == 0:
            axes.set_ylabel("speedup (dense ÷ pruned)")
    place: dict[str, Any] = {"bbox_to_anchor": ((_WIDTH * len(curves)) / width, 0.88)}
    entries = _legend_entries(known, curves)
    figure.legend(handles=entries, loc="upper left", frameon=False, fontsize=6, **place)
    return figure


def _plot_phase(axes: Axes, methods: dict[str, dict[str, list[float]]], known: list[str]) -> None:
    """Plot the curves of one phase; `known` gives each method the same look in all panels."""
    hide_frame(axes)
    for name, curve in methods.items():
        look = _look(known.index(name))
        shares, colour = curve["sparsity"], look["color"]
        if len(methods) == 1:
            band: dict[str, Any] = {"color": colour, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(shares, curve["low"], curve["high"], **band)
        dots = {"linestyle": (0, (1, 1.5)), "marker": "" if len(shares) > 1 else ".", **_DOTS}
        axes.plot(shares, curve["roofline"], color=colour, **dots)
        axes.plot(shares, curve["expected"], linewidth=0.9, markersize=3, **look)
    axes.axhline(1.0, **PARITY)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sparsity s")
    axes.locator_params(nbins=5)


def _legend_entries(known: list[str], curves: Curves) -> list[Any]:
    """Return the legend: the methods, then what solid and dotted lines and the band mean."""
    entries: list[Any] = [
        line_entry(clean(name), markersize=3, linewidth=0.9, **_look(i))
        for i, name in enumerate(known)
    ]
    entries.append(line_entry("expected", color=_GREY, linewidth=0.9))
    every = [curve for methods in curves.values() for curve in methods.values()]
    is_line = any(len(curve["sparsity"]) > 1 for curve in every)  # one sparsity is a dot
    dots: dict[str, Any] = {"linestyle": (0, (1, 1.5)) if is_line else "", **_DOTS}
    entries.append(line_entry("roofline", color=_GREY, marker="" if is_line else ".", **dots))
    if is_line and any(len(methods) == 1 for methods in curves.values()):
        entries.append(Patch(facecolor=_look(0)["color"], alpha=0.18, label="range"))
    return entries


def _look(i: int) -> dict[str, Any]:
    """Return colour and marker of method `i`; their pairs repeat after all have been used."""
    marker = CURVE_MARKERS[(i + i // len(CURVES)) % len(CURVE_MARKERS)]
    return {"color": CURVES[i % len(CURVES)], "marker": marker}


def _title(result: Prediction, phase: str) -> str:
    subject, point = result.subject, result.points[0].phases[phase]
    tokens = point.context if phase == "decode" else point.prompt_len
    unit = "keys" if phase == "decode" else "tokens"
    where = f"{phase}, B={point.batch}, {tokens} {unit}"
    return f"{clean(str(subject.name)[-20:])}, {clean(subject.device)}\n{where}"


def curves_csv(curves: Curves) -> bytes:
    """Return one row per point: phase, method and the columns of its curve.

    Times are ns of a forward and sizes are bytes.
    """
    columns = next((list(c) for m in curves.values() for c in m.values()), [])
    rows = (
        [phase, name, *values]
        for phase, methods in curves.items()
        for name, curve in methods.items()
        for values in zip(*(curve[column] for column in columns), strict=True)
    )
    return csv_text(["phase", "method", *columns], rows, quoted=False).encode()


class PredictionPlots:
    """The figures of a prediction, as matplotlib Figures."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def curves(self) -> Figure:
        """Plot speedup over sparsity, a panel a phase.

        Raises:
            PrunescopeError: The prediction is a ranking or from a run, which have no curves.
        """
        return curves_figure(self._values)
