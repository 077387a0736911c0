"""The figures of a report by name: in, a Report; out, figures one column wide, or their bytes.

Those of a pair are in pair_figures, those of one run in run_figures, GEMMs alone in replay_figure.
"""

from __future__ import annotations

import io
import zlib
from typing import NoReturn

import matplotlib
from matplotlib import ft2font
from matplotlib.figure import Figure
from matplotlib.image import imread

from prunescope.analysis.report.figure_style import plotting, saved_as
from prunescope.analysis.report.pair_figures import ladder_figure, ledger_figure
from prunescope.analysis.report.replay_figure import replay_figure
from prunescope.analysis.report.run_figures import (
    bounds_figure,
    experts_figure,
    kinds_figure,
    layers_figure,
    roofline_figure,
    step_name,
    waves_figure,
)
from prunescope.analysis.report.titles import figure_name, of_what, phase_slugs
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.uninterrupted import uninterrupted

KINDS = ("ladder", "ledger", "kinds", "roofline", "bounds", "layers", "waves", "experts", "replay")


def figure_files(report: Report, *endings: str) -> dict[str, bytes]:
    """File name to bytes of every figure that a phase has data for, each plotted once; busy time by
    kind only where there is neither a ladder nor an anatomy. `endings`: png, pdf or svg."""
    files: dict[str, bytes] = {}
    slugs = phase_slugs(report)
    for name, phase in report.phases.items():
        alone = phase.ladder is None and phase.anatomy is None
        for kind in KINDS:
            with plotting():
                figure = plot(report, name, kind) if kind != "kinds" or alone else None
                if figure is not None:
                    for ending, data in saved_as(figure, endings).items():
                        files[figure_name(kind, slugs[name], ending)] = data
    return files


def plot(report: Report, name: str, kind: str) -> Figure | None:
    """Plot one of KINDS of a phase; None where the phase has no data for it."""
    phase = report.phases[name]
    with plotting():
        if kind == "ladder":
            return ladder_figure(phase, name, title=_title(report, name, "speedup"))
        if kind == "ledger":
            return ledger_figure(phase, name, title=_title(report, name, "where the time went"))
        if kind == "kinds":
            return kinds_figure(phase, name, title=_title(report, name, "busy time by kind"))
        subject = of_what(report, name, 55)
        if kind == "experts":
            return experts_figure(phase, subject)
        if kind == "replay":
            if (found := phase.replay) is None:
                return None
            return replay_figure(found.curves, found.alignments, subject, found.disturbed)
        if phase.anatomy is None:
            return None
        if evidence.NOT_VALID_TIMING in evidence.phase_reasons(phase):
            # On a line of its own, so that it takes no room of the names.
            subject = f"{evidence.NOT_VALID_TIMING}\n{subject}"
        if kind == "roofline":
            return roofline_figure(phase.anatomy, report.device, subject)
        anatomy_figures = {
            "bounds": bounds_figure,
            "layers": layers_figure,
            "waves": waves_figure,
        }
        return anatomy_figures[kind](phase.anatomy, subject, step_name(phase))


def _title(report: Report, name: str, what: str) -> str:
    """Two lines: what is plotted, and of which model, method and phase."""
    subject = of_what(report, name, 55)
    return f"{what[0].upper()}{what[1:]}\n{subject}" if subject else what


class Plots:
    """The figures of a report. Each takes a phase, the first one where none is named, and gives a
    matplotlib Figure; PrunescopeError where the phase has nothing to plot."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __getattr__(self, name: str) -> NoReturn:
        known = [one for one in vars(Plots) if not one.startswith("_")]
        raise AttributeError(f"there is no plot {name!r}; nearest: {nearest(name, known, count=2)}")

    def ladder(self, phase: str | None = None) -> Figure:
        """Speedups, from the promise to what was measured."""
        return self._plot("ladder", phase)

    def ledger(self, phase: str | None = None) -> Figure:
        """The ledger as a waterfall."""
        return self._plot("ledger", phase)

    def kinds(self, phase: str | None = None) -> Figure:
        """Busy time by kind."""
        return self._plot("kinds", phase)

    def roofline(self, phase: str | None = None) -> Figure:
        """Calls under the ceilings of the device."""
        return self._plot("roofline", phase)

    def bounds(self, phase: str | None = None) -> Figure:
        """Time by kind and bound."""
        return self._plot("bounds", phase)

    def layers(self, phase: str | None = None) -> Figure:
        """Time of each layer by role."""
        return self._plot("layers", phase)

    def waves(self, phase: str | None = None) -> Figure:
        """Predicted time over N, with the dimensions that ran."""
        return self._plot("waves", phase)

    def experts(self, phase: str | None = None) -> Figure:
        """How evenly tokens are spread over experts, layer by layer."""
        return self._plot("experts", phase)

    def replay(self, phase: str | None = None) -> Figure:
        """GEMMs replayed alone: time over N and K, and at each alignment."""
        return self._plot("replay", phase)

    def _plot(self, kind: str, phase: str | None) -> Figure:
        phases = self._report.phases
        name = next(iter(phases), "") if phase is None else phase
        if name not in phases:
            raise PrunescopeError(
                f"the report has no phase {name!r}", hint=f"nearest: {nearest(name, phases)}"
            )
        figure = plot(self._report, name, kind)
        if figure is None:
            raise PrunescopeError(
                f"{name} has no {kind} to plot",
                hint="a ladder and a ledger need a baseline, a roofline the peaks of the device",
            )
        return figure


def plotted_with() -> str:
    """The versions that figures are plotted with: other versions may place text elsewhere."""
    return f"matplotlib {matplotlib.__version__}, freetype {ft2font.__freetype_version__}"


def most_apart(first: bytes, second: bytes) -> float | None:
    """The largest difference of a channel of a pixel between two PNG files, 0 to 1; None where one
    cannot be read or they differ in size."""
    try:
        with uninterrupted():
            pixels, others = (imread(io.BytesIO(data), "png") for data in (first, second))
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error):
        return None
    return float(abs(pixels - others).max()) if pixels.shape == others.shape else None
