"""What a trace says of itself that no marker divides into steps, and that hardly idles."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import idle_and_tiles
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, gap, k, op, save, step

MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=100)])


def told(path: Path, *items: object) -> Phase:
    return analyze(save(chrome(*items), path / "t.json")).report.phases["trace"]


def test_a_trace_without_a_marker_has_no_profiled_step(tmp_path: Path) -> None:
    phase = told(tmp_path, MM, MM)
    assert setup(phase).split(" · ")[0] == "the whole trace as one step"
    assert any("no step marker" in note for note in phase.notes)


def test_a_marked_step_is_one(tmp_path: Path) -> None:
    assert setup(told(tmp_path, step(0, MM, MM))).split(" · ")[0] == "1 profiled step"


@pytest.mark.parametrize(("us", "said"), [(0.1, False), (0.4, True)])
def test_idle_time_is_said_where_it_can_gain_anything(
    us: float, said: bool, tmp_path: Path
) -> None:
    """0.1 and 0.4 of 200 us are 0.05 % and 0.2 %."""
    phase = told(tmp_path, step(0, MM, gap(us=us, launch=True), MM))
    assert phase.anatomy is not None
    assert sum(phase.anatomy.gaps.values()) == pytest.approx(us * 1000)
    assert any(line.startswith("idle") for line in idle_and_tiles(phase)) == said
