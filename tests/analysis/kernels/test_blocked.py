"""Idle time for which no late host is to blame: held back, before the trace began, in a replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import bounds, idle_and_tiles
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary.evidence import EARLIER_WORK, ledger_reasons, phase_reasons
from prunescope.analysis.summary.headline import headline
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
        assert "100 % of the step" in earlier.text
        assert "a step takes 0.030 ms" in earlier.text.replace("30.1 µs", "0.030 ms")
        assert any("(finding earlier-work)" in warning for warning in report.warnings)
        assert not any(earlier.text in warning for warning in report.warnings)  # told once


def test_a_pair_in_which_both_traces_begin_within_earlier_work(tmp_path: Path) -> None:
    """50 ms of nothing in both, and kernels of 10 + 20 ms against 10 + 10: 1.14× of the walls,
    1.50× without it."""
    paths = []
    for name, us in (("d", 20_000), ("p", 10_000)):
        slow, last = (op("aten::mm", [64, 64], [64, n], kernels=[k(us=us_)])
                      for n, us_ in ((64, 10_000), (us // 100, us)))  # fmt: skip
        trace = chrome(step(0, MM, gap(us=50_000, launch=True), slow, last))
        paths.append(save(on_stream(trace, 9, first=1), tmp_path / f"{name}.json"))
    phase = phase_of(analyze(paths[1], baseline=paths[0]).report)
    assert phase.ladder is not None and round(phase.ladder.realised, 2) == 1.14
    assert "62 % of the dense step and 71 % of the pruned step is earlier work" in headline(phase)
    assert "without it 30.01" in headline(phase) and "1.50×; as recorded 1.14×" in headline(phase)
    assert phase.summary.startswith("1.50× without earlier work, 30.0 ms to 20.0 ms. As recorded")
    # No row is evidence, and so none is a cause, nor is a gain read from it.
    assert "No row of the ledger is evidence: holds earlier work" in phase.summary
    assert "go to" not in phase.summary and "at most" not in phase.summary
    assert phase.summary.endswith("(torch.profiler.schedule with wait and warmup).")
    assert EARLIER_WORK in phase_reasons(phase) and EARLIER_WORK in ledger_reasons(phase)


@pytest.mark.parametrize("name", [DECODE, "mi300x_sglang_qwen3-8b_prefilldecode.json.gz"])
def test_real_traces_that_begin_within_earlier_work(
    name: str, real_report: Callable[[str], Report]
) -> None:
    """SGLang's first kernel is launched 43 us after the one before, behind hipStreamWaitEvent, on a
    stream without an event before, and begins 463 and 494 ms later: 10.5 and 494 ms are a step."""
    phase = phase_of(real_report(name))
    earlier = finding(phase, "earlier-work")
    assert earlier is not None
    assert ("takes 10.498 ms" if name == DECODE else "takes 494.") in earlier.text
    for other in ("stream-blocked", "launch-bound", "host-waits"):
        assert finding(phase, other) is None
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["held"] > 0.49 * phase.wall_ns
    assert not any("CUDA graph (trace" in (f.change or "") for f in phase.findings)
    # No graph gives what the host did not delay.
    assert (phase.anatomy.kernels_speedup or 1) < 1.05
    late = sum(phase.anatomy.gaps[cause] for cause in ("host", "sync", "memcpy"))
    assert late < 0.01 * phase.wall_ns
    assert "(0.1 % of the wall)" in bounds(phase)


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
