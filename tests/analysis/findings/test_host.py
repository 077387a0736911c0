"""What the host did while the device idled: first calls, the allocator, collectives, own work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary.headline import headline
from tests.analysis.timeline.test_first_calls import MS, Host, phase_of
from tests.chrome import chrome, op, save, step

Real = Callable[[str], Report]


def finding(phase: Phase, name: str) -> Finding | None:
    return next((item for item in phase.findings if item.id == name), None)


def gaps(phase: Phase) -> dict[str, float]:
    assert phase.anatomy is not None
    return {cause: ns for cause, ns in phase.anatomy.gaps.items() if ns}


def gain_of_a_graph(phase: Phase) -> float:
    """Return the largest gain that a finding that advises a graph predicts, ns."""
    advised = [f for f in phase.findings if "CUDA graph" in f"{f.change} {f.text}"]
    return max((f.predicted_ns or 0.0 for f in advised), default=0.0)


def test_a_cold_step_is_no_launch_bound_one(tmp_path: Path) -> None:
    """600 of 601 ms in one first launch."""
    host = Host()
    host.op()
    host.op("conv", name="aten::convolution", call=600 * MS)
    for _ in range(6):
        host.op("conv", name="aten::convolution")
    phase = phase_of(host.file(tmp_path))
    cold = finding(phase, "first-calls")
    assert cold is not None and cold.severity == "warning"
    assert cold.predicted_ns == cold.about_ns == 600_001_000
    assert cold.text.startswith("the step is cold: the device waits 600.0")
    assert cold.evidence[0].startswith("600.0")
    assert finding(phase, "launch-bound") is None and gain_of_a_graph(phase) == 0


def test_a_warm_step_is_not_cold(tmp_path: Path) -> None:
    host = Host()
    for _ in range(6):
        host.op()
    phase = phase_of(host.file(tmp_path))
    for name in ("first-calls", "allocator-calls", "host-collectives", "host-work"):
        assert finding(phase, name) is None


def allocates(folder: Path, name: str, count: int, *, thread: int = 1) -> Phase:
    """Ops with `count` calls of 5 ms between them, made by `thread`."""
    host = Host()
    for _ in range(count):
        host.op()
        host.span("cuda_runtime", name, host.now, 5 * MS, thread=thread)
        host.now += 5 * MS
    host.op()
    return phase_of(host.file(folder))


@pytest.mark.parametrize(
    "name", ["cudaFree", "hipFree", "cudaFreeAsync", "hipHostMalloc", "cuMemUnmap"]
)
def test_calls_of_the_allocator_are_no_dispatch(name: str, tmp_path: Path) -> None:
    phase = allocates(tmp_path, name, 20)
    assert gaps(phase)["allocator"] == 100e6
    result = finding(phase, "allocator-calls")
    assert result is not None and result.severity == "warning"
    assert f"20 {name} a step" in result.text
    assert finding(phase, "launch-bound") is None


def test_an_allocator_that_frees_all_the_time_is_off_one_that_grows_is_not(tmp_path: Path) -> None:
    off = finding(allocates(tmp_path, "hipFree", 20), "allocator-calls")
    assert off is not None and off.predicted_ns == 100e6
    assert "caching allocator is off" in off.text and "NO_HIP_MEMORY_CACHING" in str(off.change)
    grows = finding(allocates(tmp_path, "cudaMalloc", 20), "allocator-calls")
    assert grows is not None and grows.predicted_ns == 100e6  # in steps after the pool has grown
    assert "still grows" in grows.text


def test_a_pool_that_grows_in_a_cold_step_is_not_off(tmp_path: Path) -> None:
    """It gives memory back 20 times before the second half of the launches, and never after."""
    host = Host()
    for number in range(60):
        host.op()
        if number < 20:
            host.span("cuda_runtime", "cudaFree", host.now, 5 * MS)
            host.now += 5 * MS
    grows = finding(phase_of(host.file(tmp_path)), "allocator-calls")
    assert grows is not None and "still grows" in grows.text
    assert "unset" not in str(grows.change)


def test_a_thread_may_wait_for_another_one_that_allocates(tmp_path: Path) -> None:
    """The optimizer's thread records nothing while that of the backward pass is in hipFree."""
    assert gaps(allocates(tmp_path, "hipFree", 20, thread=2))["allocator"] == 100e6


def test_what_the_host_computes_is_named_and_no_graph_is_advised(tmp_path: Path) -> None:
    """Random numbers on the host for 50 ms, then ops that launch."""
    host = Host()
    host.op()
    host.span("cpu_op", "aten::normal_", host.now, 50 * MS)
    host.now += 50 * MS
    host.op()
    host.op()
    phase = phase_of(host.file(tmp_path))
    work = finding(phase, "host-work")
    assert work is not None
    assert "computes ops itself" in work.text and "on the device" in str(work.change)
    assert work.evidence[0] == "50.000 ms in ops that the host computed (aten::normal_)"
    assert gain_of_a_graph(phase) == 0


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("<built-in function collect>", "collects garbage"),
        ("<built-in method acquire of _thread.lock object at 0x7f00>", "waits for a lock"),
        ("threading.py(327): wait", "waits for a lock or another thread"),
        ("torch/utils/data/dataloader.py(633): __next__", "waits for or prepares data"),
        ("tokenizer.py(12): encode", "does other work than launching ops"),
    ],
)
def test_python_that_keeps_the_host_is_named(frame: str, text: str, tmp_path: Path) -> None:
    host = Host()
    host.op()
    host.span("python_function", frame, host.now, 50 * MS)
    host.now += 50 * MS
    host.op()
    work = finding(phase_of(host.file(tmp_path)), "host-work")
    assert work is not None and text in work.text


def test_a_host_that_stands_still_is_not_advised_a_graph(tmp_path: Path) -> None:
    """Three of thirty ops take 20 ms instead of 7 us, none of them the first of its name."""
    host = Host()
    for number in range(30):
        host.op(before=20 * MS if number in (7, 15, 22) else 0)
    phase = phase_of(host.file(tmp_path))
    work = finding(phase, "host-work")
    assert work is not None
    assert "stands still in ops and calls" in work.text
    assert work.evidence[0].startswith("60.0") and "in 3 gaps" in work.evidence[0]
    assert gain_of_a_graph(phase) == 0


def test_collectives_of_other_threads_are_named(tmp_path: Path) -> None:
    """A host trace: 40 of 50 ms between two ops lie under gloo:all_reduce of another thread."""
    host = Host()
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    for begin in (0, 55 * MS):
        host.span("cpu_op", "aten::mm", 1000 + begin, 5 * MS, more=shapes)
    host.span("user_annotation", "gloo:all_reduce", 1000 + 10 * MS, 40 * MS, thread=2)
    phase = phase_of(host.file(tmp_path))
    assert gaps(phase) == {"collective": 40e6, "host": 10e6}
    result = finding(phase, "host-collectives")
    assert result is not None and "gloo:all_reduce" in result.text
    assert result.evidence == ["40.000 ms of 50.000 ms without work (80 %)"]
    assert "backward" not in str(result.change)
    host.span("cpu_op", "autograd::engine::evaluate_function: MmBackward0", 1000, 1)
    trained = finding(phase_of(host.file(tmp_path)), "host-collectives")
    assert trained is not None and "buckets of gradients" in str(trained.change)
    assert finding(phase, "dispatch-bound") is None


def slow_loop(*gaps_ms: float) -> Host:
    """Build a host trace: products of 5 ms with these gaps between them."""
    host = Host()
    at = 1000.0
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    for gap in (*gaps_ms, 0):
        host.span("cpu_op", "aten::mm", at, 5 * MS, more=shapes)
        at += (5 + gap) * MS
    return host


def test_one_long_gap_is_named_and_no_dispatch(tmp_path: Path) -> None:
    """Of 52 ms without an op, 50 lie in one gap, in a call of time.sleep; the step takes 72."""
    host = slow_loop(1, 50, 1)
    host.span("python_function", "train.py(7): fetch", 1000 + 11 * MS, 50 * MS)
    host.span("python_function", "<built-in function sleep>", 1000 + 11 * MS, 49 * MS)
    phase = phase_of(host.file(tmp_path))
    result = finding(phase, "long-gap")
    assert result is not None and finding(phase, "dispatch-bound") is None
    assert result.text == (
        "for 69 % of the step no op runs in one gap, in <built-in function sleep>: the cause "
        "is not dispatch"
    )
    assert result.evidence == ["50.000 ms in <built-in function sleep>, before aten::mm"]
    assert "larger batch" not in str(result.change)


def test_a_call_that_is_interrupted_once_is_not_to_be_shortened(tmp_path: Path) -> None:
    """One of ten calls of 0.2 us takes 49 ms: the host was interrupted there."""
    host = slow_loop(1, 50, 1)
    for number in range(9):
        host.span("cpu_op", "detach_", 1000 + 7 * MS + number, 0.2)
    host.span("cpu_op", "detach_", 1000 + 11.5 * MS, 49 * MS)
    result = finding(phase_of(host.file(tmp_path)), "long-gap")
    assert result is not None and "an interruption" in result.text
    assert "shorten" not in str(result.change) and "cores of its own" in str(result.change)


def test_a_call_that_is_interrupted_within_is_named_by_its_like(tmp_path: Path) -> None:
    """One of six products of 5 ms takes 95: 90 of the 120 ms are no product."""
    host = slow_loop(*[0] * 4)
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    host.span("cpu_op", "aten::mm", 1000 + 25 * MS, 95 * MS, more=shapes)
    phase = phase_of(host.file(tmp_path))
    assert phase.wall_ns == 120e6
    result = finding(phase, "interrupted-ops")
    assert result is not None and result.severity == "warning"
    assert result.text.startswith(
        "one call takes 90.000 ms (75 %) more than the others of the same"
    )
    assert result.evidence == [
        "aten::mm (unknown) takes 95.000 ms in step 0, 5.000 ms as the median of 6 calls"
    ]
    assert "cores of its own" in str(result.change)
    invalid = finding(phase, "timing-not-valid")  # 75 %: most of the step
    assert invalid is not None and invalid.severity == "critical"
    assert invalid.evidence == ["interruptions hold 75 % of the step"]
    # Nine times as long is no interruption: sizes of caches, and clocks, move times so far.
    host = slow_loop(*[0] * 4)
    host.span("cpu_op", "aten::mm", 1000 + 25 * MS, 45 * MS, more=shapes)
    assert finding(phase_of(host.file(tmp_path)), "interrupted-ops") is None


def narrowed(folder: Path, host: Host, width: int, at_ms: float) -> Path:
    """Write a trace with one more product, of this width."""
    shapes = {"Input Dims": [[64, 64], [64, width]], "Input type": ["float", "float"]}
    host.span("cpu_op", "aten::mm", 1000 + at_ms * MS, 5 * MS, more=shapes)
    folder.mkdir()
    return host.file(folder)


def test_rows_of_the_ledger_that_interruptions_and_single_gaps_make(tmp_path: Path) -> None:
    """90 ms of one call, then a gap of 50 ms, which the pruned side alone has."""
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    dense = narrowed(tmp_path / "dense", slow_loop(*[0] * 6), 128, 35)
    host = slow_loop(*[0] * 3, 95)
    host.span("cpu_op", "aten::mm", 1000 + 20 * MS, 95 * MS, more=shapes)
    path = narrowed(tmp_path / "pruned", host, 64, 120)
    (phase,) = analyze(path, baseline=dense).report.phases.values()
    result = finding(phase, "interrupted-ops")
    assert result is not None and result.accounts_for == {"kernel_efficiency": 90e6}
    dense = narrowed(tmp_path / "whole", slow_loop(*[0] * 4), 128, 25)
    path = narrowed(tmp_path / "waits", slow_loop(0, 50, 0, 0), 64, 75)
    (phase,) = analyze(path, baseline=dense).report.phases.values()
    result = finding(phase, "long-gap")
    assert result is not None and result.accounts_for == {"launch_idle": 50e6}


@pytest.mark.parametrize(("products", "apart_ms"), [(3, 115), (9, 25)])
def test_interruptions_as_long_as_the_steps_differ_leave_no_evidence(
    products: int, apart_ms: int, tmp_path: Path
) -> None:
    """One of eight dense products takes 50 ms instead of 5: 45 of a step of 150 ms."""
    (tmp_path / "dense").mkdir()
    dense = slow_loop(*[10] * 6)
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    dense.span("cpu_op", "aten::mm", 1000 + 100 * MS, 50 * MS, more=shapes)
    pruned = slow_loop(*[10] * (products - 1))
    analysis = analyze(pruned.file(tmp_path), baseline=dense.file(tmp_path / "dense"))
    (phase,) = analysis.report.phases.values()
    assert phase.baseline is not None
    assert phase.baseline.wall_ns - phase.wall_ns == apart_ms * 1e6
    assert (finding(phase, "timing-not-valid") is not None) == (apart_ms < 45)


def test_the_share_of_one_long_gap_is_that_of_the_work_it_is_named_after(tmp_path: Path) -> None:
    """Two steps of 105 and 65 ms: 90 ms of the first in time.sleep, 50 of the second elsewhere."""
    host = slow_loop(90, 0, 50)
    for number, (start, ms_long) in enumerate(((0, 105), (105, 60))):
        name = f"ProfilerStep#{number}"
        host.span("user_annotation", name, 1000 + start * MS, ms_long * MS)
    host.span("python_function", "<built-in function sleep>", 1000 + 5 * MS, 90 * MS)
    result = finding(phase_of(host.file(tmp_path)), "long-gap")
    assert result is not None
    assert "a mean step no op runs in one gap a step (in 1 of 2 steps), in <built-in" in result.text
    assert result.text.startswith("for 55 % of")  # 90 of 165


def test_a_call_that_holds_the_work_behind_the_gap_is_no_cause(tmp_path: Path) -> None:
    host = slow_loop(1, 50, 1)
    host.span("user_annotation", "## Call CompiledFxGraph abc ##", 1000 + 10.5 * MS, 60 * MS)
    result = finding(phase_of(host.file(tmp_path)), "long-gap")
    assert result is not None and "CompiledFxGraph" in result.text
    assert "within it" in str(result.change)


def test_one_long_gap_without_stacks(tmp_path: Path) -> None:
    phase = phase_of(slow_loop(1, 50, 1).file(tmp_path))
    result = finding(phase, "long-gap")
    assert result is not None and "in work without a name in the trace" in result.text
    assert "with_stack=True" in str(result.change)


def test_many_gaps_are_dispatch(tmp_path: Path) -> None:
    """Five gaps of 4 ms: none of them holds most."""
    phase = phase_of(slow_loop(*[4] * 5).file(tmp_path))
    assert finding(phase, "long-gap") is None
    assert finding(phase, "dispatch-bound") is not None


def test_nothing_is_said_of_a_device_that_was_not_recorded(tmp_path: Path) -> None:
    """Host ops of a run that launched kernels: most of the time lies between them."""
    host = Host()
    for number in range(4):
        host.span("cpu_op", "aten::mm", 1000 + number * 100, 10)
        host.span("cuda_runtime", "cudaLaunchKernel", 1002 + number * 100, 5)
    assert finding(phase_of(host.file(tmp_path)), "dispatch-bound") is None
    host = Host()
    for number in range(4):
        host.span("cpu_op", "aten::mm", 1000 + number * 100, 10)
    assert finding(phase_of(host.file(tmp_path)), "dispatch-bound") is not None


def test_a_kernel_whose_launch_call_still_runs_is_not_held_back(tmp_path: Path) -> None:
    """The launch call ended 30 ms after the device had run dry, and began while it was busy.

    The kernel was launched before, so that nothing is first.
    """
    host = Host()
    host.op()
    host.op()
    long = host.now - 25  # while the kernel of the op before runs
    host.now = long
    host.op(call=30 * MS)
    host.op()
    phase = phase_of(host.file(tmp_path))
    assert "held" not in gaps(phase)
    assert finding(phase, "stream-blocked") is None
    assert phase.bound["launch"] > 29e6


def test_a_recorded_wait_of_a_stream_is_no_work(tmp_path: Path) -> None:
    """MTIA records its waits among the events of the device."""
    host = Host()
    host.op()
    end = host.now
    waits = {"stream": 8, "device": 0, "correlation": 77}
    host.span("mtia_ccp_events", "event_wait", end - 10, 400, thread=8, more=waits)
    host.op()
    phase = phase_of(host.file(tmp_path))
    assert phase.busy_ns == 40_000
    assert "event_wait" not in {kernel.name for kernel in phase.kernels}


@pytest.mark.parametrize(
    ("name", "finding_id", "text"),
    [
        ("tracelens_mi300x_ddp_resnet18_no_pool", "allocator-calls", "272 hipFree"),
        ("part_a100_bs512_cold", "first-calls", "the step is cold"),
        ("part_a100_bs256_jit", "first-calls", "the step is cold"),
        ("switch_8b", "first-calls", "the step is cold"),
        ("hta_cpuonly_gloo", "host-collectives", "gloo:all_reduce"),
        ("megatron_a100_tp8_rank6", "host-work", "stands still"),
    ],
)
def test_real_traces_are_told_as_they_are(
    name: str, finding_id: str, text: str, real_report: Real
) -> None:
    (phase,) = real_report(f"../strangers2/{name}.json.gz").phases.values()
    result = finding(phase, finding_id)
    assert result is not None and text in result.text
    assert gain_of_a_graph(phase) < 45e6
    assert finding(phase, "launch-bound") is finding(phase, "stream-blocked") is None


def test_the_ledger_says_what_idle_time_is_of(tmp_path: Path) -> None:
    """A step with a first call of 600 ms against one without: the row of idle time names it."""
    paths = []
    for name, us in (("dense", 600 * MS), ("pruned", 5.0)):
        host = Host()
        host.op()
        host.op("conv", name="aten::convolution", call=us)
        for _ in range(6):
            host.op("conv", name="aten::convolution")
        (tmp_path / name).mkdir()
        paths.append(host.file(tmp_path / name))
    dense, pruned = paths
    (phase,) = analyze(pruned, baseline=dense).report.phases.values()
    row = next(row for row in phase.ledger or [] if row.row == "launch_idle")
    assert row.ns == pytest.approx(-600e6, abs=1e4)
    lines = [line for part in row.parts for line in part.evidence]
    (line,) = [line for line in lines if "first calls or compilation" in line]
    assert line.startswith("dense idle 600.") and "pruned" not in line


def test_interruptions_of_half_of_the_gain_leave_no_evidence(tmp_path: Path) -> None:
    """Interruptions hold 43 % of the dense step, and more than half of the gain.

    Thirteen products of 1 ms, one of which takes 11, run against thirteen of 0.5 ms: 10 of the 23
    ms of the dense step are no product, of a gain of 16.5 ms.
    """
    sides = ([1000.0] * 12 + [11_000.0], [500.0] * 13)
    paths = [
        save(
            chrome(step(0, *[op("aten::mm", [64, 64], [64, 64], us=us) for us in side]), cpu=True),
            tmp_path / f"{name}.json",
        )
        for name, side in zip(("dense", "pruned"), sides, strict=True)
    ]
    phase = analyze(paths[1], baseline=paths[0]).report.phases["trace"]
    assert (phase.baseline.wall_ns if phase.baseline else None, phase.wall_ns) == (23e6, 6.5e6)
    invalid = finding(phase, "timing-not-valid")
    assert invalid is not None and invalid.evidence == [
        "interruptions hold 10.000 ms of the two steps, which differ by 16.500 ms"
    ]
    assert "3.54× is no evidence: the steps were interrupted" in headline(phase)


def test_a_gap_that_repeats_in_each_layer_is_named_with_its_place(tmp_path: Path) -> None:
    """Three layers: a product, 3 ms of sleep, a product; 9 of 15 ms a step lie in the gaps."""
    host, at = Host(), 1000.0
    shapes = {"Input Dims": [[64, 64], [64, 64]], "Input type": ["float", "float"]}
    for layer in range(3):
        for role in ("up", "down"):
            at += 3 * MS if role == "down" else 0
            path = f"model.layers.{layer}.mlp.{role}_proj"
            host.span("user_annotation", path, at, MS)
            host.span("cpu_op", "aten::mm", at, MS, more=shapes)
            if role == "down":
                host.span("python_function", "<built-in function sleep>", at - 3 * MS, 3 * MS)
            at += MS
    host.span("user_annotation", "prunescope.step#0", 1000.0, at - 1000.0)
    phase = phase_of(host.file(tmp_path))
    result = finding(phase, "repeated-gap")
    assert result is not None and finding(phase, "dispatch-bound") is None
    assert result.text == (
        "a gap before aten::mm of down repeats in 3 layers: 9.000 ms of a step (60 %), 3.000 ms "
        "each, in <built-in function sleep>"
    )
    assert result.evidence == ["9.000 ms in <built-in function sleep>"]


def test_a_gap_of_one_layer_repeats_nowhere(tmp_path: Path) -> None:
    assert finding(phase_of(slow_loop(1, 50, 1).file(tmp_path)), "repeated-gap") is None
