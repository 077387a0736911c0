"""Steps that hold first calls or compilation: left out of means, and no baseline of a warm run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.summary.headline import headline
from tests.analysis.timeline.test_first_calls import Host
from tests.chrome import chrome, gap, module, op, save

Real = Callable[[str], Path]
OPS = 5  # of a step; each takes 36 us from launch to launch with a call of 5


def process(folder: Path, *calls: float, name: str = "t.json") -> Path:
    """Write a step for each call, whose third op launches a kernel for the first time.

    The call takes so many µs.
    """
    host = Host()
    for number, call in enumerate(calls):
        begin = host.now
        for at in range(OPS):
            new = at == 2
            host.op(f"gemm_{number}" if new else "gemm", call=call if new else 5)
        host.step(number, begin)
    folder.mkdir(exist_ok=True)
    return host.file(folder).rename(folder / name)


def told(path: Path, baseline: Path | None = None) -> Phase:
    return analyze(path, baseline=baseline).report.phases["trace"]


def test_cold_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of 5 · 36 us and 20,000 or 4,000 more; the first one begins at its first kernel, 7 us late,
    and the walls of the others where the one before ends."""
    phase = told(process(tmp_path, 20_005, 4_005, 5, 5))
    assert phase.step_ns == [180_000, 180_000]
    assert phase.wall_ns == 180_000
    cold = phase.cold_steps
    assert cold is not None
    assert cold.step_ns == [20_164_000, 4_180_000]
    assert cold.first_call_ns == [20_005_000, 4_005_000]
    assert phase.first_call_ns == 0
    assert (
        "2 cold steps left out of 20.164 and 4.180 ms, of which 24.010 ms in first calls or "
        "compilation"
    ) in setup(phase)
    assert not any(f.id in ("step-outlier", "first-calls") for f in phase.findings)


def test_on_a_cpu_only_what_a_compiler_is_named_by_makes_a_step_cold(tmp_path: Path) -> None:
    """An op that takes 20 ms once may have stood still; a frame of inductor compiles."""

    def trace(*first: Any) -> Path:
        slow = op("aten::mm", [4, 5], [5, 6], us=20_000)
        mm = op("aten::mm", [4, 5], [5, 6], us=7)
        steps = [module("ProfilerStep#0", *first, *[mm] * 4, slow)]
        steps += [module(f"ProfilerStep#{i}", *[mm] * 5) for i in (1, 2)]
        return save(chrome(*steps, cpu=True), tmp_path / "t.json")

    assert told(trace()).step_ns == [20_028_000, 35_000, 35_000]
    compiles = module("compile_fx.py(12): compile_fx (dynamo_timed)", gap(us=30_000))
    phase = told(trace(compiles))
    assert phase.step_ns == [35_000] * 2
    assert phase.cold_steps is not None
    assert phase.cold_steps.first_call_ns == [30_000_000]


def test_where_all_steps_are_cold_all_stay(tmp_path: Path) -> None:
    phase = told(process(tmp_path, 20_005))
    assert phase.cold_steps is None
    assert phase.step_ns == [20_164_000]
    assert phase.first_call_ns == 20_005_000


def test_an_odd_step_without_first_calls_stays(tmp_path: Path) -> None:
    """The third op of step 1 is 300 us late, and no call of the host is."""
    host = Host()
    for number in range(4):
        begin = host.now
        for at in range(OPS):
            host.now += 300 if (number, at) == (1, 2) else 0
            host.op()
        host.step(number, begin)
    phase = told(host.file(tmp_path))
    assert phase.step_ns == [164_000, 480_000, 180_000, 180_000]
    assert phase.cold_steps is None
    assert "step 1 (of 0 to 3) takes 480.0 µs" in next(
        f.text for f in phase.findings if f.id == "step-outlier"
    )


def test_cold_against_warm_does_not_compare(tmp_path: Path) -> None:
    """20.164 ms of which 20.005 are first calls, against 164 us: 123 times as long; without them
    159 against 164 us."""
    cold, warm = process(tmp_path / "cold", 20_005), process(tmp_path / "warm", 5)
    phase = told(warm, cold)
    assert phase.comparison is not None and not phase.comparison.is_speedup
    [why] = [f for f in phase.findings if f.id == "not-comparable"]
    assert why.text == "the two runs are not comparable: one is cold"
    assert why.evidence == [
        "the baseline holds first calls or compilation, 20.0 ms a step, and the pruned run none",
        "without first calls a step takes 159 µs in the dense run and 164 µs in the pruned "
        "one, 0.97×",
    ]
    assert headline(phase).startswith("122.95× is no speedup: not comparable (the baseline holds")
    assert not any(f.id == "above-bound" for f in phase.findings)
    against_warm = told(cold, warm)
    [why] = [f for f in against_warm.findings if f.id == "not-comparable"]
    assert why.evidence[0].startswith("the pruned run holds first calls or compilation, 20.0 ms")
    assert "the baseline none" in why.evidence[0]


def test_of_two_cold_runs_one_may_be_colder(tmp_path: Path) -> None:
    cold, colder = process(tmp_path / "a", 4_005), process(tmp_path / "b", 20_005)
    [why] = [f for f in told(cold, colder).findings if f.id == "not-comparable"]
    assert why.text.endswith("both are cold, one of them more")
    assert why.evidence[0] == (
        "the baseline holds first calls or compilation, 20.0 ms a step, and the pruned run 4.00 ms"
    )


def test_runs_that_are_as_cold_as_each_other_compare(tmp_path: Path) -> None:
    """20.005 ms of 20.164 and, with an op less, of 20.128."""
    host = Host()
    for at in range(OPS - 1):
        host.op("gemm_0" if at == 2 else "gemm", call=20_005 if at == 2 else 5)
    host.step(0, 1000.0)
    phase = told(host.file(tmp_path), process(tmp_path / "b", 20_005))
    assert phase.first_call_ns == 20_005_000
    assert phase.comparison is not None and phase.comparison.is_speedup


def test_a_real_cold_batch_against_a_warm_one(real_trace: Real) -> None:
    """977.5 ms against 30.4, of one process: 32.16 times as long, 1.69 without first calls."""
    folder = "../strangers2/part_a100_bs128_"
    cold, warm = (real_trace(f"{folder}{name}.json.gz") for name in ("1_cold", "3_warm"))
    phase = told(warm, cold)
    [why] = [f for f in phase.findings if f.id == "not-comparable"]
    assert why.evidence[0].startswith("the baseline holds first calls or compilation, 926")
    assert "32.16× is no speedup" in headline(phase)
