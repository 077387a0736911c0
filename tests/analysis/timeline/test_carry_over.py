"""Device events that are of no step: each is named with its ns, and none looks like idle time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import outside_steps
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.trace.load import load
from tests.chrome import save

Real = Callable[[str], Report]
REAL = ("a100_legacy_flows", "a100_training_graphs_nccl", "h100_qwen1.5-0.5b_prefill",
        "mi300x_sglang_qwen3-8b_prefilldecode", "v100_legacy_graphs")  # fmt: skip


class Event(NamedTuple):
    """A kernel, in µs; `launch`: its launch on the host, None where the trace lacks it."""

    start: float
    us: float
    launch: float | None
    id: int
    stream: int = 7


def trace(windows: list[tuple[float, float]], *events: Event) -> Any:
    records: list[dict[str, Any]] = []

    def add(cat: str, name: str, tid: int, ts: float, dur: float, **args: Any) -> None:
        records.append({"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts,
                    "dur": dur, "args": args})  # fmt: skip

    for i, (begin, end) in enumerate(windows):
        add("user_annotation", f"ProfilerStep#{i}", 1, begin, end - begin)
    for e in events:
        add("kernel", f"kernel_{e.id}", e.stream, e.start, e.us, correlation=e.id, stream=e.stream)
        if e.launch is not None:
            add("cuda_runtime", "cudaLaunchKernel", 1, e.launch, 1, correlation=e.id)
    return {"traceEvents": records}


def phase(made: Any, folder: Path) -> Phase:
    return analyze(save(made, folder / "t.json")).report.phases["trace"]


def step(number: int) -> tuple[Event, Event]:
    """Kernels of 10 and 20 µs at 100, 115 (step 0), 200, 215 (step 1), launched 50 µs earlier."""
    at = 100 + 100 * number
    return (Event(at, 10, at - 50, 50 + 20 * number),
            Event(at + 15, 20, at - 45, 51 + 20 * number))  # fmt: skip


TWO = [(45.0, 60.0), (145.0, 160.0)]


def test_two_steps_alone(tmp_path: Path) -> None:
    """Step 0: 100 to 135, 5 idle; step 1: from 135 to 235, 65 and 5 idle."""
    made = phase(trace(TWO, *step(0), *step(1)), tmp_path)
    assert (made.wall_ns, made.busy_ns, made.gap_ns) == (67_500, 30_000, 37_500)
    assert made.carry_over["events"] == made.late["events"] == made.left_out["events"] == 0


@pytest.mark.parametrize("unknown", [999_999, 55, -1])
def test_a_kernel_without_a_launch_between_two_steps_is_no_idle_time(
    unknown: int, tmp_path: Path
) -> None:
    """It runs from 140 to 190: of the 65 idle µs before step 1, the 10 after it are left. Whatever
    its id: above all others, between those of the steps, or none."""
    made = phase(trace(TWO, *step(0), Event(140, 50, None, unknown), *step(1)), tmp_path)
    assert made.left_out == {"events": 1, "ns": 50_000}
    assert (made.wall_ns, made.busy_ns, made.gap_ns) == (40_000, 30_000, 10_000)
    assert made.kernels_per_step == [2, 2]


def test_a_gap_that_foreign_work_covers_is_not_the_hosts(tmp_path: Path) -> None:
    """Step 1 is launched at 150 and 155. Left out: 140 to 190, so that the device was not dry; with
    one from 140 to 149 it was, for 51 µs of which the host is late for all."""
    made = phase(trace(TWO, *step(0), Event(140, 50, None, 999), *step(1)), tmp_path)
    assert made.bound["launch"] == 0
    made = phase(trace(TWO, *step(0), Event(140, 9, None, 999), *step(1)), tmp_path)
    assert made.bound["launch"] == 51_000 / 2  # a step
    assert made.gap_ns == (5_000 + 51_000 + 5_000) / 2


def test_foreign_work_inside_of_a_step_takes_none_of_its_busy_time(tmp_path: Path) -> None:
    """A copy launched before step 1, on another stream: 205 to 214, beside the kernel until 210.
    All 10 of it stay busy; of the 5 idle µs until 215, the 1 after the copy is left."""
    copy = Event(205, 9, 141, 65, stream=9)
    made = phase(trace(TWO, *step(0), copy, *step(1)), tmp_path)
    assert made.left_out == {"events": 1, "ns": 9_000}
    assert made.busy_ns == 30_000
    assert made.gap_ns == (5_000 + 65_000 + 1_000) / 2
    assert made.wall_ns == made.busy_ns + made.gap_ns


def spilt(*, launch: float) -> Any:
    """Step 0 copies on stream 15 at 60, then the step before still runs on stream 7, until 98."""
    old = [Event(70 + 7 * i, 7, None, 10 + i) for i in range(4)]
    return trace(TWO, Event(60, 4, launch, 49, stream=15), *old, *step(0), *step(1))


def test_carry_over_is_found_by_stream(tmp_path: Path) -> None:
    """4 kernels of 7 µs; the step starts at its first event behind them, 100, as without them; the
    copy lies in the wall of the step before."""
    made = phase(spilt(launch=46), tmp_path)
    assert made.carry_over == {"events": 4, "ns": 28_000}
    assert made.kernels_per_step == [3, 2]
    assert (made.wall_ns, made.busy_ns) == (67_500, 30_000)
    assert made.launch_latency_ns == 55_000  # from 45 to 100
    # The copy from 60 to 64, and the step before from 70 to 98.
    assert made.launch_latency_busy_ns == 4_000 + 28_000
    # The copy was launched at 46, inside of step 0, which begins at 45.
    assert made.launch_latency_work == {"events": 1, "ns": 4_000, "ran_ns": 4_000}
    (said,) = [x for x in outside_steps(made) if x.startswith("launch latency")]
    assert "to the end of work launched before it, not in the wall" in said
    assert "earlier work for 28.0 µs, 1 event of the step itself" in said
    assert said.endswith(
        "for 4.00 µs (4.00 µs of it concurrent with nothing earlier), and idled for 23.0 µs"
    )


def test_carry_over_before_a_step_without_kernels_is_of_neither(tmp_path: Path) -> None:
    """The first window holds none and is no step; the next begins behind the carry-over, at 100."""
    empty = [(20.0, 30.0), *TWO]
    made = spilt(launch=46)
    made["traceEvents"] = [e for e in made["traceEvents"] if e["cat"] != "user_annotation"]
    made["traceEvents"] += trace(empty)["traceEvents"]
    analysed = phase(made, tmp_path)
    assert analysed.kernels_per_step == [3, 2]
    assert analysed.wall_ns == 67_500


def test_carry_over_does_not_vanish_behind_an_event_of_no_step(tmp_path: Path) -> None:
    made = phase(spilt(launch=40), tmp_path)
    assert made.carry_over == {"events": 4, "ns": 28_000}
    assert made.left_out == {"events": 1, "ns": 4_000}
    assert (made.kernels_per_step, made.wall_ns) == ([2, 2], 67_500)


def test_carry_over_that_runs_into_the_step_is_clipped_there(tmp_path: Path) -> None:
    """Until 105 on another stream: 5 of the first 10 µs are those of the step before."""
    made = phase(trace(TWO, Event(90, 15, None, 3, stream=9), *step(0), *step(1)), tmp_path)
    assert made.carry_over == {"events": 1, "ns": 15_000}
    assert (made.wall_ns, made.busy_ns) == ((30_000 + 100_000) / 2, (25_000 + 30_000) / 2)


def test_carry_over_that_outlives_the_step_does_not_hide_it(tmp_path: Path) -> None:
    """A copy of the step before, on a stream of its own, until 500."""
    made = phase(trace(TWO[:1], Event(90, 410, None, 3, stream=9), *step(0)), tmp_path)
    assert made.carry_over == {"events": 1, "ns": 410_000}
    assert (made.busy_ns, made.kernels_per_step) == (30_000, [2])


def test_an_id_gives_the_step_where_the_stream_does_not(tmp_path: Path) -> None:
    """Stream 9 has no linked event: id 50.. are launches of step 0, 70.. of step 1. The kernel at
    220 was launched in step 0; one with an id that is older than all is spill even there; where a
    kernel would run before its launch, ids say nothing, and the order of all streams counts."""
    alone = Event(220, 5, None, 50, stream=9)
    first, second = step(0)
    wide = (first._replace(id=49), second)  # 49, 50, 51
    made = phase(trace(TWO, *wide, alone, *step(1)), tmp_path)
    assert made.kernels_per_step == [3, 2]
    made = phase(trace(TWO, *step(0), alone._replace(id=3), *step(1)), tmp_path)
    assert made.carry_over == {"events": 1, "ns": 5_000}
    late = (step(1)[0], step(1)[1]._replace(id=72))
    made = phase(trace(TWO, *step(0), Event(112, 3, None, 71, stream=9), *late), tmp_path)
    assert made.kernels_per_step == [3, 2]


def test_ids_without_an_order_tell_nothing(tmp_path: Path) -> None:
    """Ids that fall as launches go on: 95, between those of step 0, is of step 1, in which it runs
    at 211."""
    falling = [e._replace(id=100 - 10 * i) for i, e in enumerate((*step(0), *step(1)))]
    made = phase(trace(TWO, *falling, Event(211, 2, None, 95, stream=9)), tmp_path)
    assert made.kernels_per_step == [2, 3]


def test_steps_without_any_link_are_no_steps(tmp_path: Path) -> None:
    """Two steps, two kernels, no launch: nobody knows of which step they are."""
    made = phase(trace(TWO, Event(100, 10, None, 1), Event(200, 10, None, 2)), tmp_path)
    assert (made.steps, made.wall_ns, made.busy_ns) == (1, 110_000, 20_000)
    assert made.notes[1:3] == [
        "ProfilerStep#0 and similar annotations: these annotations contain no launches, so they "
        "are not the steps",
        "no step marker in the trace: all of it counts as one step",
    ]


@pytest.mark.parametrize("name", REAL)
def test_every_event_of_a_real_trace_is_somewhere(
    name: str, real_trace: Callable[[str], Path], real_report: Real
) -> None:
    path = real_trace(f"{name}.json.gz")
    made = real_report(path.name).phases["trace"]
    parts = (made.carry_over, made.late, made.left_out)
    total = sum(made.kernels_per_step) + sum(int(part["events"]) for part in parts)
    assert total == len(load(path).device["ts"])


@pytest.mark.parametrize(
    ("name", "kernels", "steps", "spill"),
    [("v100_legacy_graphs", 2503, 6, 614), ("a100_training_graphs_nccl", 1375, 5, 872)],
)  # fmt: skip
def test_real_carry_over_of_several_streams(
    name: str,
    kernels: int,
    steps: int,
    spill: int,
    real_trace: Callable[[str], Path],
    real_report: Real,
) -> None:
    """Every step of a training loop launches as many kernels: the 614 and 872 events without a
    launch, whose ids are below that of every launch, are of none of them."""
    path = real_trace(f"{name}.json.gz")
    made = real_report(path.name).phases["trace"]
    assert made.kernels_per_step == [kernels] * steps
    loaded = load(path)
    ids, known = loaded.device["correlation"], loaded.launches["correlation"]
    assert made.carry_over["events"] == spill == int((ids < known.min()).sum())


def test_the_carry_over_of_every_copy_of_a_real_trace_is_named(
    real_trace: Callable[[str], Path], real_report: Real, tmp_path: Path
) -> None:
    """Three copies of a step with 509 events of spill: the first is spill, the others run between
    steps. A later step waits 290.943 µs more, from the end of its spill to its first kernel."""
    scale = Path(__file__).resolve().parents[3] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("benchmark_scale", scale)
    assert spec is not None and spec.loader is not None
    repeat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repeat)
    single = real_trace("h100_qwen1.5-0.5b_prefill.json.gz")
    repeat.scale(single, tmp_path / "many.json", events=40_000)
    once = real_report(single.name).phases["trace"]
    many = analyze(tmp_path / "many.json").report.phases["trace"]
    assert many.steps == 3
    assert many.carry_over == once.carry_over
    assert many.left_out == {"events": 2 * 509, "ns": 2 * once.carry_over["ns"]}
    assert many.busy_ns == once.busy_ns
    assert many.wall_ns == pytest.approx(once.wall_ns + 2 / 3 * 290_943, abs=3)


def ahead() -> Any:
    """Step 0 from 100 to 150 with a gap of 20; in it step 1 copies for 10, whose kernel follows."""
    own = (Event(100, 10, 50, 1), Event(130, 20, 51, 2))
    return trace([(45, 60), (61, 80)], *own, Event(112, 10, 65, 3, 9), Event(160, 10, 66, 4))


def test_what_a_later_step_launched_ahead_is_no_idle_time(tmp_path: Path) -> None:
    made = phase(ahead(), tmp_path)
    assert (made.wall_ns, made.busy_ns, made.gap_ns) == (35_000, 20_000, 15_000)
    assert made.anatomy is not None
    gaps = made.anatomy.gaps
    assert (gaps["other_step"], gaps["device"]) == (5_000, 10_000)
    assert sum(gaps.values()) == made.gap_ns
    assert made.anatomy.kernels_speedup == 70 / 50
    (note,) = [text for text in made.notes if "before the previous step had ended" in text]
    assert note.startswith("0.5 events a step ran for 5.0 µs before")
