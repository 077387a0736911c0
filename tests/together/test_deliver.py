"""Where a report goes, and where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.pipeline import analyze
from tests.analysis.bundle.test_bundle import make
from tests.chrome import chrome, k, op, save


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


@pytest.mark.parametrize(("count", "lost", "code"), [(200, 0, 0), (200, 1, 3), (201, 1, 0)])
def test_a_trace_that_lost_kernels_is_partial(
    count: int, lost: int, code: int, tmp_path: Path
) -> None:
    """0.5 % of the launches without a kernel; fewer are those that the profiler's stop cuts off."""
    one = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=1, name="gemm")])
    trace = chrome(*[one] * count)
    gone = [e for e in trace["traceEvents"] if e["cat"] == "kernel"][:lost]
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e not in gone]
    path = save(trace, tmp_path / "t.json")
    assert prunescope.main(["analyze", str(path)]) == code
    report = analyze(path).report
    said = [f"t.json: {lost} of {count} kernel launches have no kernel in it"] if code else []
    assert [w for w in report.warnings if "launches" in w] == said
    assert report.partial == bool(code)
