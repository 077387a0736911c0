"""Idle time for which no late host is to blame: held back, before the trace began, in a replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import bounds, idle_and_tiles
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.report import Finding, Phase, Report
from tests.analysis.replays import replayed
from tests.chrome import chrome, gap, k, op, save, step

MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])
DECODE = "mi300x_sglang_qwen3-8b_decode_graph.json.gz"
Real = Callable[[str], Path]


def phase_of(report: Report) -> Phase:
    """The only phase of a report."""
    (phase,) = report.phases.values()
    return phase


def finding(phase: Phase, name: str) -> Finding | None:
    """The finding of a name, if there is one."""
    return next((one for one in phase.findings if one.id == name), None)


def on_stream(trace: dict[str, Any], stream: int, *, first: int) -> dict[str, Any]:
    """The kernels from number `first` on are on a stream of their own."""
    kernels = [e for e in trace["traceEvents"] if e.get("cat") == "kernel"]
    for event in sorted(kernels, key=lambda e: e["ts"])[first:]:
        event["tid"] = event["args"]["stream"] = stream
    return trace


def test_a_kernel_that_its_stream_holds_back(tmp_path: Path) -> None:
    """Launched when the device has run out of work, and begun 50 ms after that: no late host."""
    trace = chrome(step(0, MM, gap(us=50_000, launch=True), MM))
    phase = phase_of(analyze(save(trace, tmp_path / "t.json")).report)
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["held"] == 50e6 - 60  # but for the op and its launch
    assert finding(phase, "launch-bound") is None
    held = finding(phase, "stream-blocked")
    assert held is not None
    assert "100 %" in held.text
    assert "50.0" in held.evidence[0]


@pytest.mark.parametrize("before", ["nothing", "the same stream", "work"])
def test_a_trace_that_begins_within_earlier_work(before: str, tmp_path: Path) -> None:
    """10 us, then 50 ms of nothing before the first kernel of a stream, then 20 us. Where that
    stream ran before, or the device was busy for more than a hundredth as long, nothing tells what
    it waited for."""
    first = [MM] * (60 if before == "work" else 1)
    trace = chrome(step(0, *first, gap(us=50_000, launch=True), MM, MM))
    on_stream(trace, 9, first=0 if before == "the same stream" else len(first))
    report = analyze(save(trace, tmp_path / "t.json")).report
    phase = phase_of(report)
    earlier = finding(phase, "earlier-work")
    assert (earlier is None) is (before != "nothing")
    assert (finding(phase, "stream-blocked") is None) is (before == "nothing")
    if earlier is not None:
        # 30 us of kernels, and the 60 ns of the op and its launch, before it was held back
        assert (phase.wall_ns, phase.earlier_work_ns) == (30_060, 50e6 - 60)
        assert phase.wall_ns == phase.busy_ns + phase.gap_ns + phase.tail_ns
        assert phase.summary.startswith("A step takes 30.1 µs") and "left out" in phase.summary
        assert "as recorded, with earlier work, 50.030 ms" in setup(phase)


def test_earlier_work_before_the_first_of_several_steps_is_told_whole(tmp_path: Path) -> None:
    """50 ms before the first of five steps were told as 10 ms before a step, its share of them."""
    steps = [step(0, MM, gap(us=50_000, launch=True), MM), *(step(n, MM, MM) for n in range(1, 5))]
    trace = on_stream(chrome(*steps), 9, first=1)
    phase = phase_of(analyze(save(trace, tmp_path / "t.json")).report)
    assert phase.earlier_work_ns == pytest.approx(10e6, rel=1e-3)
    assert "50.0 ms before the first step are left out" in phase.summary
    earlier = finding(phase, "earlier-work")
    assert earlier is not None and "50.000 ms of the trace is no time" in earlier.text


def test_a_pair_compares_the_own_times_of_its_steps(tmp_path: Path) -> None:
    """50 ms of nothing in both, and kernels of 10 + 20 ms against 10 + 10: 1.14× of the walls as
    recorded, 1.50× of the steps. The rows of the ledger are those of the steps."""
    paths = []
    for name, us in (("d", 20_000), ("p", 10_000)):
        trace = chrome(step(0, MM, gap(us=50_000, launch=True), *_slow(us)))
        paths.append(save(on_stream(trace, 9, first=1), tmp_path / f"{name}.json"))
    phase = phase_of(analyze(paths[1], baseline=paths[0]).report)
    assert phase.ladder is not None and round(phase.ladder.realised, 2) == 1.5
    assert "1.50×" in phase.summary and "1.14×" not in phase.summary
    assert "as recorded, with earlier work, 80.010 ms → 70.010 ms, 1.14×" in setup(phase)
    earlier = finding(phase, "earlier-work")
    assert earlier is not None and "of the pruned trace and" in earlier.text


def test_a_pair_of_which_one_side_begins_within_earlier_work(tmp_path: Path) -> None:
    """The dense step of 30.01 ms behind 50 ms of earlier work, against 20.01 ms: 1.50×, not 4×."""
    dense = on_stream(chrome(step(0, MM, gap(us=50_000, launch=True), *_slow(20_000))), 9, first=1)
    pruned = chrome(step(0, MM, *_slow(10_000)))
    dense_path, pruned_path = save(dense, tmp_path / "d.json"), save(pruned, tmp_path / "p.json")
    phase = phase_of(analyze(pruned_path, baseline=dense_path).report)
    assert phase.ladder is not None and round(phase.ladder.realised, 2) == 1.5
    assert "80.010 ms → 20.010 ms, 4.00×" in setup(phase)


def _slow(last_us: int) -> list[Any]:
    """A product of 10 ms, and one of `last_us`."""
    return [op("aten::mm", [64, 64], [64, n], kernels=[k(us=us)])
            for n, us in ((64, 10_000), (last_us // 100, last_us))]  # fmt: skip


@pytest.mark.parametrize("name", [DECODE, "mi300x_sglang_qwen3-8b_prefilldecode.json.gz"])
def test_real_traces_that_begin_within_earlier_work(
    name: str, real_report: Callable[[str], Report]
) -> None:
    """SGLang's first kernel is launched 43 us after the one before, behind hipStreamWaitEvent, on a
    stream without an event before, and begins 463 and 494 ms later: 10.5 and 494 ms are a step."""
    phase = phase_of(real_report(name))
    assert finding(phase, "earlier-work") is not None
    own_ns, earlier_ns = (10.498e6, 463.252e6) if name == DECODE else (494.050e6, 493.239e6)
    assert phase.wall_ns == pytest.approx(own_ns, abs=500)
    assert phase.earlier_work_ns == pytest.approx(earlier_ns, abs=500)
    for other in ("stream-blocked", "launch-bound", "host-waits"):
        assert finding(phase, other) is None
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["held"] < 0.05 * phase.wall_ns
    assert not any("CUDA graph (trace" in (f.change or "") for f in phase.findings)
    # No graph gives what the host did not delay.
    assert (phase.anatomy.kernels_speedup or 1) < 1.05
    late = sum(phase.anatomy.gaps[cause] for cause in ("host", "sync", "memcpy"))
    assert late < 0.05 * phase.wall_ns
    assert ("(4.2 %" if name == DECODE else "(0.3 %") in bounds(phase)


@pytest.mark.parametrize("us", [900, 2000])
def test_a_replay_that_stands_still_lacks_kernels(us: float, tmp_path: Path) -> None:
    """Between two kernels of one replay: nothing outside of it holds them apart."""
    trace = replayed(chrome(MM, MM, gap(us=us), MM))
    phase = phase_of(analyze(save(trace, tmp_path / "t.json")).report)
    assert phase.anatomy is not None
    holes = finding(phase, "graph-idle")
    assert (holes is None) is (us == 900)
    assert finding(phase, "stream-blocked") is None
    assert phase.anatomy.gaps["unknown" if holes else "device"] == us * 1e3
    if holes is not None:
        assert "2.000 ms of the step (99 %)" in holes.text
        assert holes.evidence == ["1 gaps of more than 1 ms a step; the longest is 2.000 ms"]


def test_no_graph_is_promised_to_a_step_that_is_one(tmp_path: Path) -> None:
    trace = replayed(chrome(*[MM] * 4), times=3)
    phase = phase_of(analyze(save(trace, tmp_path / "t.json")).report)
    assert phase.anatomy is not None
    assert phase.anatomy.graph_speedup is not None
    assert phase.anatomy.kernels_speedup is None
    assert "in a CUDA graph" not in idle_and_tiles(phase)[0]


def test_holes_of_real_replays(real_report: Callable[[str], Report]) -> None:
    """A100: 51 gaps of more than 1 ms in 5 steps lie between two kernels of one graph launch, and
    in 0.9 ms of them a step the device ran copies for a later step. In others NCCL ran between the
    two kernels. What such a graph lacks may also have run before its first kernel that is there."""
    phase = phase_of(real_report("a100_training_graphs_nccl.json.gz"))
    holes = finding(phase, "graph-idle")
    assert holes is not None
    assert "32.225 ms of the step (15 %)" in holes.text
    assert phase.anatomy is not None
    unknown = sum(one.ns for one in phase.anatomy.idle if one.doing == "unknown")
    assert unknown > 60e6
    assert "ms before the first events of replays" in holes.evidence[1]
    assert finding(phase, "stream-blocked") is None
