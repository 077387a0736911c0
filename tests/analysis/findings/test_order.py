"""The order of findings, the advice that follows from it, and that no time has two causes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.findings.registry import SEVERITIES, registered
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import INVALID_TIMES, SIDE_CAVEATS, Finding, Phase
from prunescope.analysis.summary.causes import recommended_changes
from tests.analysis.findings.test_host import Real, finding
from tests.analysis.timeline.test_first_calls import MS, Host, phase_of
from tests.chrome import chrome, k, op, save, step

NO_EVIDENCE = INVALID_TIMES | SIDE_CAVEATS
# Findings whose time is that of one cause each. (A late host may be told in several ways: as
# launches, as work of the host, as one long gap.)
CAUSES = ("first-calls", "allocator-calls", "interrupted-ops", "host-waits", "host-collectives",
          "launch-bound", "unattributed-idle", "stream-blocked")  # fmt: skip


def made(id: str, severity: str, gain: float | None) -> Finding:
    return Finding(id=id, severity=severity, text="x", evidence=[], change="y", predicted_ns=gain)


def test_all_pairs_of_findings_stand_by_their_gain() -> None:
    """Of any two, the larger gain first; one without a gain never before one that has it.

    What leaves no evidence comes before, and so does a critical finding without a gain, which says
    that the pruning has none.
    """
    every = [
        made(rule.id, severity, gain)
        for rule in registered()
        for severity in SEVERITIES[SEVERITIES.index(rule.severity) :]
        for gain in (None, 18e6, 424e6)
    ]
    place = {id(item): number for number, item in enumerate(sorted(every, key=lambda f: f.order))}
    for first, second in product(every, every):
        if {first.id, second.id} & NO_EVIDENCE:
            continue
        decides = first.severity == "critical" and not first.predicted_ns
        before = place[id(first)] < place[id(second)]
        if (first.predicted_ns or 0) > (second.predicted_ns or 0):
            assert before or (second.severity == "critical" and not second.predicted_ns)
        if not first.predicted_ns and second.predicted_ns:
            assert not before or decides


@pytest.mark.parametrize("name", ["a100_training_graphs_nccl"])
def test_the_advice_is_the_first_finding_with_a_change(name: str, real_report: Real) -> None:
    for phase in real_report(f"{name}.json.gz").phases.values():
        worth = [f for f in phase.findings if f.change and (f.predicted_ns or f.severity != "info")]
        assert recommended_changes(phase)[:1] == worth[:1]


def comm(us: float) -> dict[str, Any]:
    """Return the trace of a step of a product of 100 us and, behind it, an all-reduce."""
    reduce = op("nccl:all_reduce", [64], kernels=[k(us=us, name="ncclDevKernel_AllReduce_Sum")])
    product_op = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=100)])
    trace: dict[str, Any] = chrome(step(0, product_op, reduce))
    return trace


def alone(tmp_path: Path, trace: object) -> Phase:
    [phase] = analyze(save(trace, tmp_path / "t.json")).report.phases.values()
    return phase


def test_communication_that_nothing_overlaps_has_a_gain(tmp_path: Path) -> None:
    """300 of some 400 us."""
    phase = alone(tmp_path, comm(300))
    exposed = finding(phase, "exposed-communication")
    assert exposed is not None and exposed.severity == "warning"
    assert exposed.predicted_ns == exposed.about_ns == 300_000
    assert "nothing overlaps" in exposed.text
    assert "rank" in phase.summary


def test_overlapped_communication_has_no_finding(tmp_path: Path) -> None:
    """Three of some 100 us are no finding."""
    assert finding(alone(tmp_path, comm(3)), "exposed-communication") is None


def test_idle_time_before_work_without_a_launch_is_named(tmp_path: Path) -> None:
    """Kernels every 100 us, each of 20, of no launch: 80 of 100 us idle for no known cause."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 1000 + 100 * i,
         "dur": 20, "args": {"stream": 7, "device": 0}}
        for i in range(20)
    ]  # fmt: skip
    idle = finding(alone(tmp_path, {"traceEvents": events}), "unattributed-idle")
    assert idle is not None and idle.severity == "warning"
    assert idle.predicted_ns is None and idle.about_ns == 19 * 80_000


def test_idle_time_before_a_late_launch_has_its_cause(tmp_path: Path) -> None:
    host = Host()
    for _ in range(8):
        host.op(before=8 * MS)
    phase = phase_of(host.file(tmp_path))
    assert finding(phase, "unattributed-idle") is None
    assert finding(phase, "launch-bound") is not None


HAPPENS = st.sampled_from(["op", "cold", "malloc", "free", "sync", "slow"])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(what=st.lists(HAPPENS, min_size=4, max_size=40))
def test_no_time_has_two_causes(tmp_path: Path, what: list[str]) -> None:
    """Whatever happens between launches, the findings on causes claim no ns twice.

    Their times together are no longer than the idle time of the step.
    """
    host = Host()
    for _ in range(4):
        host.op()
    for number, event in enumerate(what):
        if event == "cold":
            host.op(f"kernel{number}", name=f"aten::op{number}", call=30 * MS)
        elif event == "slow":
            host.op(before=8 * MS)
        elif event != "op":
            names = {"malloc": "cudaMalloc", "free": "cudaFree", "sync": "cudaStreamSynchronize"}
            host.span("cuda_runtime", names[event], host.now, 4 * MS)
            host.now += 4 * MS
        host.op()
    phase = phase_of(host.file(tmp_path))
    claimed = [f.about_ns or 0.0 for f in phase.findings if f.id in CAUSES]
    assert sum(claimed) <= phase.gap_ns + phase.tail_ns + 1


@given(numbers=st.lists(st.integers(1, 20), min_size=6, max_size=12))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_window_of_no_work_changes_nothing(tmp_path: Path, numbers: list[int]) -> None:
    """A profiler's step without work behind the last one moves no mean and no count."""
    steps = [
        step(i, *[op("aten::mm", [64, 64], [64, 64], kernels=[k(us=n)])] * 2)
        for i, n in enumerate(numbers)
    ]
    whole = chrome(*steps)
    spans = [e for e in whole["traceEvents"] if "step#" in e.get("name", "")]
    last = max(spans, key=lambda e: e["ts"])
    later = {**last, "name": last["name"].replace(str(len(numbers) - 1), str(len(numbers)))}
    later |= {"ts": last["ts"] + last["dur"] + 50, "dur": 20}
    more = {"traceEvents": [*whole["traceEvents"], later]}
    before, after = (alone(tmp_path, trace) for trace in (whole, more))
    assert (before.steps, before.wall_ns, before.kernels_per_step) == (
        after.steps, after.wall_ns, after.kernels_per_step,
    )  # fmt: skip
