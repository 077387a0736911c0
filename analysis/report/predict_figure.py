"""The curves of a prediction: in, `curves` of the JSON; out, PNG, PDF or SVG bytes, and a CSV.

A panel a phase: expected speedup over sparsity, one colour a method; its roofline dotted. The
range of guessed costs is a band where one method stands alone.
"""

from __future__ import annotations

from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prunescope.analysis.report.escape import clean, csv_text
from prunescope.analysis.report.figure_style import CURVE_MARKERS, CURVES, plotting, saved_as
from prunescope.analysis.schema.prediction import Prediction
from prunescope.taxonomy.errors import PrunescopeError

Curves = dict[str, dict[str, dict[str, list[float]]]]
_WIDTH, _HEIGHT, _LEGEND = 2.6, 2.3, 1.3  # inches: a panel, and the legend next to them


def curve_files(values: dict[str, Any]) -> dict[str, bytes]:
    """File name to bytes: curves.png, .pdf, .svg and .csv, of the plain values of --json."""
    result = msgspec.convert(values, Prediction)
    curves = result.curves
    with plotting():
        pictures = saved_as(_curves(result), ("png", "pdf", "svg"))
    files = {f"curves.{ending}": data for ending, data in pictures.items()}
    return {**files, "curves.csv": curves_csv(curves)}


def curves_figure(values: dict[str, Any]) -> Figure:
    """The figure of the plain values of --json. Raises PrunescopeError where they have no curves:
    of a ranking, of families from a run, and of a dense model alone."""
    if not values.get("curves"):
        raise PrunescopeError(
            "there is no curve over sparsity to plot",
            hint="predict with method= one family or several, and sparsity= one value or several",
        )
    with plotting():
        return _curves(msgspec.convert(values, Prediction))


def _curves(result: Prediction) -> Figure:
    """Everything is placed in inches, so that no label is cut."""
    curves: Curves = result.curves
    width = _WIDTH * len(curves) + _LEGEND
    figure = Figure(figsize=(width, _HEIGHT))
    FigureCanvasAgg(figure)
    known = list(dict.fromkeys(name for methods in curves.values() for name in methods))
    for i, (phase, methods) in enumerate(curves.items()):
        left = (_WIDTH * i + 0.5) / width
        box = (left, 0.42 / _HEIGHT, (_WIDTH - 0.62) / width, (_HEIGHT - 0.8) / _HEIGHT)
        axes = figure.add_axes(box)
        _panel(axes, methods, known)
        axes.set_title(_title(result, phase), fontsize=7)
        if i == 0:
            axes.set_ylabel("speedup (dense ÷ pruned)")
    figure.legend(
        handles=_handles(known, curves),
        loc="upper left",
        frameon=False,
        fontsize=6,
        bbox_to_anchor=((_WIDTH * len(curves)) / width, 0.88),
    )
    return figure


def _panel(axes: Axes, methods: dict[str, dict[str, list[float]]], known: list[str]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for name, curve in methods.items():
        colour, marker = _look(known.index(name))
        shares = curve["sparsity"]
        if len(methods) == 1:
            axes.fill_between(
                shares, curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0
            )
        axes.plot(
            shares,
            curve["roofline"],
            color=colour,
            linewidth=0.7,
            markersize=2,
            linestyle=(0, (1, 1.5)),
            marker="" if len(shares) > 1 else ".",
        )
        axes.plot(
            shares, curve["expected"], color=colour, linewidth=0.9, marker=marker, markersize=3
        )
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sparsity s")
    axes.locator_params(nbins=5)


def _handles(known: list[str], curves: Curves) -> list[Any]:
    handles: list[Any] = []
    for i, name in enumerate(known):
        colour, marker = _look(i)
        handles.append(
            Line2D(
                [], [], color=colour, marker=marker, markersize=3, linewidth=0.9, label=clean(name)
            )
        )
    grey = "#555555"
    handles.append(Line2D([], [], color=grey, linewidth=0.9, label="expected"))
    every = [curve for methods in curves.values() for curve in methods.values()]
    is_line = any(len(curve["sparsity"]) > 1 for curve in every)  # one sparsity: a dot
    roofline: dict[str, Any] = {"linestyle": (0, (1, 1.5))} if is_line else {"linestyle": ""}
    roofline |= {"marker": "" if is_line else ".", "markersize": 2, "linewidth": 0.7}
    handles.append(Line2D([], [], color=grey, label="roofline", **roofline))
    alone = [methods for methods in curves.values() if len(methods) == 1]
    if is_line and alone:
        handles.append(Patch(facecolor=_look(0)[0], alpha=0.18, label="range"))
    return handles


def _look(i: int) -> tuple[str, str]:
    return CURVES[i % len(CURVES)], CURVE_MARKERS[(i + i // len(CURVES)) % len(CURVE_MARKERS)]


def _title(result: Prediction, phase: str) -> str:
    subject, point = result.subject, result.points[0].phases[phase]
    tokens = point.context if phase == "decode" else point.prompt_len
    unit = "keys" if phase == "decode" else "tokens"
    where = f"{phase}, B={point.batch}, {tokens} {unit}"
    return f"{clean(str(subject.name)[-20:])}, {clean(subject.device)}\n{where}"


def curves_csv(curves: Curves) -> bytes:
    """One row per point: phase, method and the columns of its curve. ns and bytes a forward."""
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

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found

    def curves(self) -> Figure:
        """Speedup over sparsity, a panel a phase. Raises PrunescopeError for a ranking and for a
        prediction from a run, which have no curves."""
        return curves_figure(self._found)
