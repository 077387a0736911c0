"""Figures as they are drawn, before they become the bytes of a file; and bytes that are drawn once
for all tests that only need some. No test in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from matplotlib.figure import Figure

from prunescope.analysis.report import figure_style, figures
from prunescope.analysis.schema.report import Report, to_json

_kept: dict[tuple[bytes, str], dict[str, bytes]] = {}
_figure_files = figures.figure_files


def drawn(files: Callable[[Report, str], dict[str, bytes]], of: Report) -> dict[str, Figure]:
    """The figures that `files` draws of a report at 300 dpi, by the name of their file."""
    kept: list[Figure] = []

    def keep(figure: Figure, endings: Sequence[str], alt: str = "") -> dict[str, bytes]:
        assert alt
        figure.set_dpi(300)
        figure.draw_without_rendering()
        kept.append(figure)
        return dict.fromkeys(endings, b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_style, "saved_as", keep)
        return dict(zip(files(of, "png"), kept, strict=True))


def kept_files(report: Report, *endings: str) -> dict[str, bytes]:
    """What `figure_files` gives, of an equal report drawn only once in each format."""
    told = to_json(report)
    new = [ending for ending in endings if (told, ending) not in _kept]
    files = _figure_files(report, *new) if new else {}
    for ending in new:
        _kept[told, ending] = {n: data for n, data in files.items() if n.endswith(f".{ending}")}
    return {name: data for ending in endings for name, data in _kept[told, ending].items()}


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of where the files of figures go, not of what they hold."""
    monkeypatch.setattr(figures, "figure_files", kept_files)
