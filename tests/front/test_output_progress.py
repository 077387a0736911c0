"""Progress where standard error is a file."""

from __future__ import annotations

import pytest

from prunescope import output


def test_a_file_gets_a_line_of_progress_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in the first ten seconds, nor of a single thing."""
    with output.progress_bar("runs") as on_done:
        on_done(1, 3)
        monkeypatch.setattr(output, "QUIET_S", -1.0)
        on_done(1, 1)
        on_done(2, 3)
    assert capsys.readouterr().err == "runs: 2 of 3, about 1 s left\n"
