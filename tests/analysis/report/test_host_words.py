"""A trace of a CPU has no launches, and no sentence says that anything waits for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import bounds
from tests.chrome import chrome, gap, k, op, save, step

OP = op("aten::threshold_backward", [8], [8], [], kernels=[k(us=10)])


@pytest.mark.parametrize(
    ("cpu", "says"),
    [(True, "between ops 5.00 µs"), (False, "idle before kernels not launched in time 5.00 µs")],
)
def test_what_is_idle_on_a_cpu_lies_between_ops(cpu: bool, says: str, tmp_path: Path) -> None:
    trace = chrome(step(0, OP, gap(us=5, launch=True), OP), cpu=cpu)
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert says in bounds(phase)
    assert set(phase.kinds) == {"activation"}
