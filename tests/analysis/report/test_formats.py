"""A format is one row of a table: how a made-up one is written, and named where another is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.report.formats import FORMATS, Format, RequestedFormats, shows_hosts
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats, write_report
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report.example import two_phases


def test_a_row_is_a_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def render(asked: RequestedFormats) -> dict[str, bytes]:
        return {f"report.{asked.name}": " ".join(asked.report.phases).encode()}

    monkeypatch.setitem(FORMATS, "txt", Format(render))
    report = two_phases()
    (path,) = write_report(report, tmp_path / "out", formats=("txt",))
    assert path.read_text() == " ".join(report.phases) != ""
    assert not shows_hosts(["txt"])


def test_the_formats_that_there_are() -> None:
    assert set(DEFAULT_FORMATS) < set(FORMATS)
    check_formats(tuple(FORMATS))
    assert shows_hosts(["md", "perfetto"])
    with pytest.raises(PrunescopeError, match="txt") as caught:
        check_formats(("txt",))
    assert "perfetto" in str(caught.value.hint)
