"""The curves of a prediction: in, `curves` of the JSON; out, PNG, PDF or SVG bytes, and a CSV.

A panel a phase: expected speedup over sparsity, one colour a method; its roofline is dotted. The
range of the guessed costs is a band if a phase has a single method.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report.escape import clean, csv_text
from prunescope.analysis.report.figure_style import (
    PARITY,
    add_title,
    legend_below,
    line_entry,
    panel_axes,
    plotting,
)
from prunescope.analysis.report.looks import Look, family_looks
from prunescope.analysis.report.picture import PICTURES, Picture, files_of_pictures
from prunescope.analysis.schema.prediction import Prediction
from prunescope.taxonomy import numbers
from prunescope.taxonomy.errors import PrunescopeError

Curves = dict[str, dict[str, dict[str, list[float]]]]
_HEIGHT = 2.2  # inches: a panel
_MOST_METHODS = 8  # of a panel
_GREY = "#555555"
_DOTTED = (0, (1, 1.5))
# Of the roofline, whose marks are those of the method, so that grey tells the lines apart.
_HOLLOW: dict[str, Any] = {"linewidth": 0.7, "markersize": 2.6, "markeredgewidth": 0.6}
_HOLLOW |= {"markerfacecolor": "white"}
_TITLE = "Expected speedup over sparsity"


class _Panel(NamedTuple):
    """A phase, and the methods of which a panel shows curves."""

    phase: str
    methods: list[str]


def curve_files(
    values: dict[str, Any], formats: Sequence[str] = (*PICTURES, "csv", "tex")
) -> dict[str, bytes]:
    """Return the curves as files, from file name to bytes.

    Args:
        values: The plain values of `predict --json`.
        formats: Of png, pdf and svg for the figure, csv for its numbers, tex for its caption.

    Raises:
        PrunescopeError: There are no curves.
    """
    result = _with_curves(values)
    pictures = [_picture(result)]
    files = files_of_pictures(pictures, formats, str(result.tool))
    return {**files, "curves.csv": curves_csv(result.curves)} if "csv" in formats else files


def _picture(result: Prediction) -> Picture:
    subject, curves = result.subject, result.curves
    methods = list(dict.fromkeys(name for own in curves.values() for name in own))
    settings = "; ".join(_where(result, phase) for phase in curves)
    ends = "; ".join(
        f"{phase}, {name}: {numbers.ratio(curve['expected'][-1])} at s = {curve['sparsity'][-1]:g}"
        for phase, own in curves.items()
        for name, curve in own.items()
    )
    band = " The band is the range of the costs that are guessed." if len(methods) == 1 else ""
    return Picture(
        stem="curves",
        title=_TITLE,
        caption=f"{_TITLE}: {clean(str(subject.name))} on {clean(subject.device)}, "
        f"{', '.join(map(clean, methods))}; {settings}. Predicted, not measured: solid lines are "
        f"expected, dotted ones with hollow marks the roofline bound.{band}",
        alt=f"Curves that end at: {ends}.",
        plot=partial(_curves, result),
    )


def curves_figure(values: dict[str, Any]) -> Figure:
    """Plot the curves of a prediction.

    Args:
        values: The plain values of `predict --json`.

    Raises:
        PrunescopeError: There are no curves: the values are of a ranking, of families from a run,
            or of a dense model alone.
    """
    result = _with_curves(values)
    with plotting():
        return _curves(result)


def _with_curves(values: dict[str, Any]) -> Prediction:
    """Return a prediction that has curves, or raise PrunescopeError."""
    if not values.get("curves"):
        raise PrunescopeError(
            "there is no curve over sparsity to plot",
            hint="predict with method= one family or several, and sparsity= one value or several",
        )
    return msgspec.convert(values, Prediction)


def _curves(result: Prediction) -> Figure:
    """Plot a panel for each phase, and several where it has more methods than one names."""
    curves: Curves = result.curves
    panels = [
        _Panel(phase, list(own)[i : i + _MOST_METHODS])
        for phase, own in curves.items()
        for i in range(0, len(own), _MOST_METHODS)
    ]
    looks = family_looks((name, name) for methods in curves.values() for name in methods)
    figure, every = panel_axes(len(panels), _HEIGHT)
    add_title(figure, f"{clean(str(result.subject.name)[-40:])}, {clean(result.subject.device)}")
    for axes, panel in zip(every, panels, strict=True):
        own = curves[panel.phase]
        shown = {name: own[name] for name in panel.methods}
        _plot_phase(axes, shown, looks, is_alone=len(own) == 1)
        axes.set_title(_where(result, panel.phase), loc="left")
        axes.set_ylabel("speedup (dense ÷ pruned)")
    legend_below(figure, _legend_entries(looks, curves))
    return figure


def _plot_phase(
    axes: Axes,
    methods: dict[str, dict[str, list[float]]],
    looks: dict[str, Look],
    *,
    is_alone: bool,
) -> None:
    """Plot the curves of one phase, with the range of a method that is alone."""
    for name, curve in methods.items():
        shares, colour = curve["sparsity"], looks[name].colour
        if is_alone:
            band: dict[str, Any] = {"color": colour, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(shares, curve["low"], curve["high"], **band)
        bound = {"linestyle": _DOTTED, "marker": looks[name].marker, **_HOLLOW}
        axes.plot(shares, curve["roofline"], color=colour, **bound)
        line = _line(looks[name]) | {"gid": f"family-{name}"}
        axes.plot(shares, curve["expected"], **line)
    axes.axhline(1.0, **PARITY)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sparsity s")
    axes.locator_params(nbins=5)


def _legend_entries(looks: dict[str, Look], curves: Curves) -> list[Any]:
    """Return the legend: the methods, then what solid and dotted lines and the band mean."""
    entries: list[Any] = [line_entry(clean(name), **_line(look)) for name, look in looks.items()]
    entries.append(line_entry("expected", color=_GREY, linewidth=0.9))
    every = [curve for methods in curves.values() for curve in methods.values()]
    is_line = any(len(curve["sparsity"]) > 1 for curve in every)  # one sparsity is a dot
    bound: dict[str, Any] = {"linestyle": _DOTTED if is_line else "", "marker": "o", **_HOLLOW}
    entries.append(line_entry("roofline, hollow", color=_GREY, **bound))
    if is_line and any(len(methods) == 1 for methods in curves.values()):
        (colour, *_), *_ = looks.values()
        entries.append(Patch(facecolor=colour, alpha=0.18, label="range"))
    return entries


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "marker": look.marker, "linewidth": 0.9, "markersize": 3}


def _where(result: Prediction, phase: str) -> str:
    """Return phase, batch and length."""
    point = result.points[0].phases[phase]
    tokens = point.context if phase == "decode" else point.prompt_len
    unit = "keys" if phase == "decode" else "tokens"
    return f"{phase}, batch {point.batch}, {tokens:,} {unit}"


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
