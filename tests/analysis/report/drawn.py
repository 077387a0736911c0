"""Figures as they are drawn, before they become the bytes of a file. No test in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from matplotlib.figure import Figure

from prunescope.analysis.report import figures
from prunescope.analysis.schema.report import Report


def drawn(
    monkeypatch: pytest.MonkeyPatch, files: Callable[[Report, str], dict[str, bytes]], of: Report
) -> dict[str, Figure]:
    """The figures that `files` draws of a report at 300 dpi, by the name of their file."""
    kept: list[Figure] = []

    def keep(figure: Figure, endings: Sequence[str]) -> dict[str, bytes]:
        figure.set_dpi(300)
        figure.draw_without_rendering()
        kept.append(figure)
        return dict.fromkeys(endings, b"")

    monkeypatch.setattr(figures, "saved_as", keep)
    return dict(zip(files(of, "png"), kept, strict=True))
