"""The formats that a report is written in, one row each: the name that --format takes, and how.

In: a RequestedFormats. Out: file names to bytes. A row imports what it needs, and nothing else
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.errors import PrunescopeError

if TYPE_CHECKING:
    from prunescope.analysis.report.explorer import SideTimeline

Frames = Mapping[str, pl.DataFrame]


class PhaseFrames(Struct, frozen=True):
    """The frames of each phase that a report was made from.

    Attributes:
        pruned: The kernels frame of each phase, of the pruned side or of the only one.
        dense: Those of the dense side; empty where they are not held.
        hosts: The host's events of each phase; None where they are not to be shown.
        pruned_host: What the host of the pruned side did in its first step.
        dense_host: What that of the dense side did.
        dense_layers: The dense layer of each pruned one by phase, where their numbers differ.
    """

    pruned: Frames
    dense: Frames = field(default_factory=dict)
    hosts: Frames | None = None
    pruned_host: Frames = field(default_factory=dict)
    dense_host: Frames = field(default_factory=dict)
    dense_layers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def sides(self, phase: str) -> list[SideTimeline]:
        """Return both sides of a phase for its timeline, dense first; empty without kernels."""
        from prunescope.analysis.report.explorer import SideTimeline

        if phase not in self.pruned:
            return []
        layers = self.dense_layers.get(phase, {})
        pruned = SideTimeline("pruned", self.pruned[phase], self.pruned_host.get(phase), layers)
        if phase not in self.dense:
            return [replace(pruned, name="step")]
        return [SideTimeline("dense", self.dense[phase], self.dense_host.get(phase)), pruned]


class RequestedFormats(Struct, frozen=True, kw_only=True):
    """A report and what goes into one of its formats.

    Attributes:
        report: The report.
        name: The format.
        frames: The frames of each phase; None where the report does not carry them.
        figures: The formats of figures, all of which one rendering gives.
    """

    report: Report
    name: str
    frames: PhaseFrames | None = None
    figures: tuple[str, ...] = ()

    def needed_frames(self) -> PhaseFrames:
        """Return the frames; raise PrunescopeError where there are none."""
        if self.frames is None or not self.frames.pruned:
            raise PrunescopeError(
                f"{self.name} holds the kernels frame, which this report does not carry",
                hint=f"analyze the trace or the run again with --format {self.name}",
            )
        return self.frames


class Format(Struct, frozen=True):
    """How a format is rendered.

    Attributes:
        render: Gives file names to bytes.
        shows_hosts: Whether it shows the host's events, where they are known.
        is_figure: Whether it consists of pictures.
    """

    render: Callable[[RequestedFormats], dict[str, bytes]]
    shows_hosts: bool = False
    is_figure: bool = False


def _markdown(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report.markdown import render_markdown

    return {"report.md": render_markdown(request.report).encode()}


def _html(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report.html import render_html

    frames = request.frames or PhaseFrames({})
    sides = {phase: frames.sides(phase) for phase in request.report.phases}
    return {"report.html": render_html(request.report, sides).encode()}


def _json(request: RequestedFormats) -> dict[str, bytes]:
    return {"report.json": to_json(request.report)}


def _latex(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report.latex import latex_files

    parts = latex_files(request.report)
    return {file: text.encode() for file, text in parts.items()}


def _csv(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report import tables

    texts = tables.csv_tables(request.report)
    return _tables(request) | {file: text.encode() for file, text in texts.items()}


def _parquet(request: RequestedFormats) -> dict[str, bytes]:
    request.needed_frames()
    return _tables(request)


def _tables(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report import tables

    held = request.frames.pruned if request.frames is not None else None
    dictionary = tables.data_dictionary(held).encode()
    frames = tables.frame_tables(request.report, held or {}, request.name)
    return {"data-dictionary.csv": dictionary, **frames}


def _perfetto(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report.perfetto import perfetto_files

    frames = request.needed_frames()
    return perfetto_files(request.report, frames.pruned, frames.hosts, frames.dense)


def _figures(request: RequestedFormats) -> dict[str, bytes]:
    from prunescope.analysis.report.figures import figure_files

    return figure_files(request.report, *(request.figures or (request.name,)))


FORMATS: dict[str, Format] = {
    "md": Format(_markdown),
    "html": Format(_html),
    "json": Format(_json),
    "tex": Format(_latex),
    "csv": Format(_csv),
    "parquet": Format(_parquet),
    "perfetto": Format(_perfetto, shows_hosts=True),
    "png": Format(_figures, is_figure=True),
    "pdf": Format(_figures, is_figure=True),
    "svg": Format(_figures, is_figure=True),
}


def shows_hosts(names: Iterable[str]) -> bool:
    """Return whether one of the formats shows the host's events."""
    return any(name in FORMATS and FORMATS[name].shows_hosts for name in names)
