"""The figures of a report by name: in, a Report; out, figures, or their bytes.

Those of a pair are in pair_figures, those of one run in run_figures, GEMMs alone in replay_figure.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import NoReturn

import matplotlib
from matplotlib import ft2font
from matplotlib.figure import Figure
from matplotlib.image import imread

from prunescope.analysis.report.figure_style import plotting
from prunescope.analysis.report.pair_figures import ladder_figure, ledger_figure
from prunescope.analysis.report.phase_pictures import FIGURES, phase_pictures
from prunescope.analysis.report.picture import Picture, files_of_pictures
from prunescope.analysis.report.replay_figure import replay_figure
from prunescope.analysis.report.run_figures import (
    bounds_figure,
    experts_figure,
    kinds_figure,
    layers_figure,
    roofline_figure,
    waves_figure,
)
from prunescope.analysis.report.titles import short_subject
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.uninterrupted import uninterrupted

# Figures that show a phase by itself, and figures of its anatomy or its routers.
_PHASE_FIGURES = {"ladder": ladder_figure, "ledger": ledger_figure, "kinds": kinds_figure}
_OTHER_FIGURES = {
    "bounds": bounds_figure,
    "layers": layers_figure,
    "waves": waves_figure,
    "experts": experts_figure,
}


def figure_files(report: Report, *endings: str) -> dict[str, bytes]:
    """Return the files of every figure that a phase has data for, from file name to bytes.

    Busy time by kind is plotted only where there is neither a ladder nor an anatomy. Each figure is
    plotted once for all formats.

    Args:
        report: The report.
        endings: The formats, of png, pdf and svg.
    """
    return files_of_pictures(report_pictures(report), endings, report.tool)


def report_pictures(report: Report) -> Iterator[Picture]:
    """Yield the figures of each phase with their captions."""
    return phase_pictures(report, plot)


def plot(report: Report, name: str, kind: str) -> Figure | None:
    """Plot one of the figures of a phase.

    Args:
        report: The report.
        name: The name of the phase.
        kind: One of FIGURES.

    Returns:
        The figure; None where the phase has no data for it.
    """
    phase = report.phases[name]
    told = FIGURES[kind](report, phase)
    if told is None:
        return None
    subject = short_subject(report, name, 55)
    with plotting():
        if kind in _PHASE_FIGURES:
            whole = f"{told.title}\n{subject}" if subject else told.title
            return _PHASE_FIGURES[kind](phase, name, title=whole)
        if kind == "replay":
            assert phase.replay is not None  # FIGURES told it
            replay = phase.replay
            return replay_figure(replay.curves, replay.alignments, subject, replay.disturbed)
        if evidence.NOT_VALID_TIMING in evidence.phase_reasons(phase):
            # It stands on a line of its own, so that it takes no room of the names.
            subject = f"{evidence.NOT_VALID_TIMING}\n{subject}"
        if kind == "roofline":
            return roofline_figure(phase, report.device, subject)
        return _OTHER_FIGURES[kind](phase, subject)


class Plots:
    """The figures of a report, as matplotlib Figures.

    Each method takes the name of a phase, and the first one if none is given. It raises
    PrunescopeError where the phase has nothing to plot.
    """

    def __init__(self, report: Report) -> None:
        self._report = report

    def __getattr__(self, name: str) -> NoReturn:
        known = [method for method in vars(Plots) if not method.startswith("_")]
        raise AttributeError(f"there is no plot {name!r}; nearest: {nearest(name, known, count=2)}")

    def ladder(self, phase: str | None = None) -> Figure:
        """Plot the speedups, from the promise to what was measured."""
        return self._plot("ladder", phase)

    def ledger(self, phase: str | None = None) -> Figure:
        """Plot the ledger as a waterfall."""
        return self._plot("ledger", phase)

    def kinds(self, phase: str | None = None) -> Figure:
        """Plot busy time by kind."""
        return self._plot("kinds", phase)

    def roofline(self, phase: str | None = None) -> Figure:
        """Plot calls under the ceilings of the device."""
        return self._plot("roofline", phase)

    def bounds(self, phase: str | None = None) -> Figure:
        """Plot time by kind and bound."""
        return self._plot("bounds", phase)

    def layers(self, phase: str | None = None) -> Figure:
        """Plot the time of each layer by role."""
        return self._plot("layers", phase)

    def waves(self, phase: str | None = None) -> Figure:
        """Plot predicted time over N, with the dimensions that ran."""
        return self._plot("waves", phase)

    def experts(self, phase: str | None = None) -> Figure:
        """Plot how evenly tokens are spread over experts, layer by layer."""
        return self._plot("experts", phase)

    def replay(self, phase: str | None = None) -> Figure:
        """Plot GEMMs replayed alone: time over N and K, and at each alignment."""
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
    """Return the versions that figures are plotted with; others may place text elsewhere."""
    return f"matplotlib {matplotlib.__version__}, freetype {ft2font.__freetype_version__}"


def most_apart(first: bytes, second: bytes) -> float | None:
    """Return the largest difference of a channel of a pixel between two PNG files, 0 to 1.

    Args:
        first: The bytes of one PNG file.
        second: The bytes of the other.

    Returns:
        The difference; None where a file cannot be read or the two differ in size.
    """
    try:
        with uninterrupted():
            pixels, others = (imread(io.BytesIO(data), "png") for data in (first, second))
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error):
        return None
    return float(abs(pixels - others).max()) if pixels.shape == others.shape else None
