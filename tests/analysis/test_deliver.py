"""Where a report goes, and where it does not."""

from __future__ import annotations

from pathlib import Path

import prunescope
from tests.analysis.test_bundle import make


def test_nothing_is_written_through_a_link_in_a_run(tmp_path: Path) -> None:
    """A run may be a stranger's: its `report` could lie on any folder of the reader."""
    run, mine = make(tmp_path / "run"), tmp_path / "mine"
    mine.mkdir()
    place = tmp_path / "run" / "report"
    place.symlink_to(mine)
    assert run.is_dir()
    assert prunescope.main(["analyze", str(tmp_path / "run")]) == 2
    assert list(mine.iterdir()) == []
    # A folder that the reader names may be a link.
    assert prunescope.main(["analyze", str(tmp_path / "run"), "--out", str(place)]) == 0
    assert (mine / "report.md").is_file()
