"""The benchmark's repeated trace: every copy is the same step, and links stay inside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, gap, k, module, op, save

SCALE = Path(__file__).resolve().parents[3] / "benchmarks" / "scale.py"


def scale(source: Path, out: Path, *, events: int) -> int:
    spec = importlib.util.spec_from_file_location("benchmark_scale", SCALE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    count: int = loaded.scale(source, out, events=events)
    return count


def test_copies_are_steps_of_their_own(tmp_path: Path) -> None:
    matmul = op("aten::mm", [8, 4], [4, 4], kernels=[k(us=5, name="gemm")])
    one = save(chrome(module("ProfilerStep#6", matmul, gap(us=2), matmul)), tmp_path / "one.json")
    assert scale(one, tmp_path / "many.json", events=20) == 21  # 7 events, 3 times
    phase = analyze(tmp_path / "many.json").report.phases["trace"]
    assert phase.kernels_per_step == [2, 2, 2]
    assert phase.busy_ns == 10_000
    assert phase.gemms[0].m == 8
    assert phase.left_out["events"] == phase.carry_over["events"] == 0


def test_a_real_trace_repeated_is_its_step_repeated(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    one = real_trace("h100_vit.json.gz")
    scale(one, tmp_path / "many.json", events=12_000)
    once = analyze(one).report.phases["trace"]
    many = analyze(tmp_path / "many.json").report.phases["trace"]
    assert many.steps > 2
    assert many.kernels_per_step == once.kernels_per_step * many.steps
    assert abs(many.busy_ns - once.busy_ns) <= 1  # times are rounded once more
    assert many.kinds.keys() == once.kinds.keys()
