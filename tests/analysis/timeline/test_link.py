"""From kernel to launch to op: by correlation and External id, by nesting where ids clash."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import idle_and_tiles as anatomy_lines
from prunescope.analysis.schema.report import Report, to_json
from prunescope.analysis.timeline.link import link
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.trace_columns import Trace
from tests.analysis.edits import Edit
from tests.chrome import chrome, gap, k, module, op, save, step


def names_of_ops(trace: Trace) -> list[str | None]:
    linked = link(trace, find_windows(trace))
    return [None if i < 0 else trace.names[trace.ops["name"][i]] for i in linked.op]


def two_ops() -> dict[str, Any]:
    inner = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7), k(us=2, cat="gpu_memset")])
    outer = op("aten::linear", [4, 5], [6, 5], inner=[inner])
    return chrome(step(0, outer, op("aten::add", [4, 6], [4, 6], kernels=[k(us=3)])))


WANT = ["aten::mm", "aten::mm", "aten::add"]


def test_a_kernel_has_the_op_of_its_launch(tmp_path: Path) -> None:
    assert names_of_ops(load(save(two_ops(), tmp_path / "t.json"))) == WANT


def test_no_flow_events_are_needed_and_none_mislead(tmp_path: Path) -> None:
    """Correlation links; flow events of any category and id are not read."""
    trace = two_ops()
    for cat in ("ac2g", "async_cpu_to_gpu"):
        flow = {"cat": cat, "id": 3, "pid": 1, "tid": 1}
        trace["traceEvents"] += [{**flow, "ph": "s", "ts": 1}, {**flow, "ph": "f", "ts": 2}]
    assert names_of_ops(load(save(trace, tmp_path / "t.json"))) == WANT


def test_launches_without_external_ids_nest_in_their_op(tmp_path: Path) -> None:
    trace = two_ops()
    for event in trace["traceEvents"]:
        if event["cat"] != "cpu_op":
            event["args"].pop("External id", None)
    assert names_of_ops(load(save(trace, tmp_path / "t.json"))) == WANT


def test_ids_that_clash_fall_back_to_nesting(tmp_path: Path) -> None:
    """Older profilers number ops and launches apart: the id names an op far away."""
    trace = two_ops()
    trace["traceEvents"].append(
        {"ph": "X", "cat": "cpu_op", "name": "aten::elsewhere", "pid": 1, "tid": 2, "ts": 1,
         "dur": 1, "args": {"External id": 77}}
    )  # fmt: skip
    for event in trace["traceEvents"]:
        if event["cat"] in ("cuda_runtime", "kernel", "gpu_memset"):
            event["args"]["External id"] = 77
    assert names_of_ops(load(save(trace, tmp_path / "t.json"))) == WANT


def test_the_legacy_spelling_of_ids(tmp_path: Path) -> None:
    trace = two_ops()
    for event in trace["traceEvents"]:
        if "External id" in event["args"]:
            event["args"]["external id"] = str(event["args"].pop("External id"))
    assert names_of_ops(load(save(trace, tmp_path / "t.json"))) == WANT


def without(trace: dict[str, Any], how: str) -> dict[str, Any]:
    """Return the trace as profilers and filters leave it that drop correlation ids, or launches."""
    for event in trace["traceEvents"]:
        if how == "ids":
            event["args"].pop("correlation", None)
    if how == "launches":
        trace["traceEvents"] = [e for e in trace["traceEvents"] if e["cat"] != "cuda_runtime"]
    return trace


@pytest.mark.parametrize("how", ["ids", "launches"])
def test_without_correlation_the_external_id_names_the_op(how: str, tmp_path: Path) -> None:
    path = save(without(two_ops(), how), tmp_path / "t.json")
    assert names_of_ops(load(path)) == WANT
    phase = analyze(path).report.phases["trace"]
    why = "no correlation id" if how == "ids" else "no launches"
    assert [n for n in phase.notes if "3 of 3 device events" in n and why in n], phase.notes


def test_an_external_id_of_an_op_that_began_later_names_another(tmp_path: Path) -> None:
    """Ids numbered apart, as older profilers do: a kernel cannot run before its op."""
    trace = without(two_ops(), "launches")
    late = max(e["ts"] for e in trace["traceEvents"]) + 50
    for event in trace["traceEvents"]:
        if event["cat"] == "cpu_op":
            event["ts"] += late
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e["cat"] != "user_annotation"]
    path = save(trace, tmp_path / "t.json")
    assert names_of_ops(load(path)) == [None] * 3
    (note,) = [n for n in analyze(path).report.phases["trace"].notes if "have no op" in n]
    assert "3 of 3 device events" in note
    assert "no launches" in note


def test_ids_that_clash_where_launches_tell_link_nothing_else(tmp_path: Path) -> None:
    """Where the External ids of correlated kernels name other ops, those of the rest do too."""
    trace = two_ops()
    ops = [e["args"]["External id"] for e in trace["traceEvents"] if e["cat"] == "cpu_op"]
    for event in trace["traceEvents"]:
        if event["cat"] in ("kernel", "gpu_memset"):
            event["args"]["External id"] = ops[0] if event["args"]["External id"] != ops[0] else 0
    kernels = [e for e in trace["traceEvents"] if e["cat"] == "kernel"]
    kernels[0]["args"].pop("correlation")
    assert names_of_ops(load(save(trace, tmp_path / "t.json"))) == ["aten::mm", "aten::add"]


@pytest.mark.parametrize("how", ["ids", "launches"])
def test_a_real_trace_links_by_external_id_alone(
    how: str, real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    edit = Edit(real_trace("h100_vit.json.gz"))
    want = analyze(edit.save(tmp_path / "a.json")).report.phases["trace"]
    for event in edit.events:
        if how == "ids" and "correlation" in event.get("args", {}):
            del event["args"]["correlation"]
    edit.events = [e for e in edit.events if e.get("cat") != "ac2g"]
    if how == "launches":
        kinds = ("cuda_runtime", "cuda_driver")
        edit.events = [e for e in edit.events if e.get("cat") not in kinds]
    got = analyze(edit.save(tmp_path / "b.json")).report.phases["trace"]
    assert got.gemms == want.gemms
    assert (got.roles, got.kinds, got.wall_ns) == (want.roles, want.kinds, want.wall_ns)
    assert got.coverage == want.coverage
    assert [n for n in got.notes if "156 of 156 device events" in n]
    assert got.anatomy is not None and want.anatomy is not None
    known = ("host", "sync", "memcpy")  # a wait is told where the whole op began too late
    assert sum(got.anatomy.gaps.values()) == pytest.approx(sum(want.anatomy.gaps.values()))
    assert sum(got.anatomy.gaps[c] for c in known) <= sum(want.anatomy.gaps[c] for c in known)
    assert got.anatomy.gaps["device"] <= want.anatomy.gaps["device"]


@pytest.mark.parametrize(
    "name", ["h100_vit.json.gz", "mi300x_sglang_qwen3-8b_prefilldecode.json.gz"]
)
@pytest.mark.parametrize("bare", [False, True])
def test_a_real_trace_links_by_its_arrows_alone(
    name: str,
    real_trace: Callable[[str], Path],
    real_report: Callable[[str], Report],
    tmp_path: Path,
    *,
    bare: bool,
) -> None:
    """Without ids, and without the stream and device that say where an arrow ends: those are the
    rows that an event is drawn on. The same answer, to the last note."""
    trace = json.loads(gzip.decompress(real_trace(name).read_bytes()))
    want = real_report(name).phases["trace"]
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") != "cpu_op":
            dropped = ["correlation", "External id", "external id"]
            dropped += ["stream", "device"] if bare else []
            for key in dropped:
                event.get("args", {}).pop(key, None)
    (tmp_path / "b.json").write_text(json.dumps(trace))
    got = analyze(tmp_path / "b.json").report.phases["trace"]
    assert msgspec.to_builtins(got) == msgspec.to_builtins(want)


def test_arrows_that_go_elsewhere_link_nothing(tmp_path: Path) -> None:
    """An arrow that begins with no launch, or ends at no kernel, names none."""
    trace = without(two_ops(), "ids")
    for event in trace["traceEvents"]:
        event["args"].pop("External id", None)
    kernel = next(e for e in trace["traceEvents"] if e["cat"] == "kernel")
    launch = next(e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime")
    ends = {"ph": "f", "cat": "ac2g", "id": 5, "pid": kernel["pid"], "tid": kernel["tid"]}
    begins = {"ph": "s", "cat": "ac2g", "id": 5, "pid": launch["pid"], "tid": launch["tid"]}
    right = [{**begins, "ts": launch["ts"]}, {**ends, "ts": kernel["ts"]}]
    wrong = [{**begins, "ts": launch["ts"] + 1}, {**ends, "ts": kernel["ts"]}]
    for arrows, linked in ((right, 1), (wrong, 0)):
        both = {**trace, "traceEvents": [*trace["traceEvents"], *arrows]}
        names = names_of_ops(load(save(both, tmp_path / "t.json")))
        assert sum(name is not None for name in names) == linked


@pytest.mark.parametrize(
    ("launch", "cat"), [("cudaGraphLaunch", "cuda_runtime"), ("hipGraphLaunch", "hip_runtime"),
                        ("cuGraphLaunch", "cuda_driver"), ("hipGraphLaunch", "cuda_runtime")]
)  # fmt: skip
def test_all_kernels_of_a_graph_replay_share_its_launch(
    launch: str, cat: str, tmp_path: Path
) -> None:
    trace = chrome(step(0, k(us=5), k(us=6), k(us=7)))
    trace["traceEvents"].append(
        {"ph": "X", "cat": cat, "name": launch, "pid": 1, "tid": 1,
         "ts": 1_000_000 - 1, "dur": 1, "args": {"correlation": 9}}
    )  # fmt: skip
    for event in trace["traceEvents"]:
        if event["cat"] == "kernel":
            event["args"]["correlation"] = 9
        if event["cat"] == "user_annotation":
            event["ts"], event["dur"] = 1_000_000 - 2, 5
    loaded = load(save(trace, tmp_path / "t.json"))
    linked = link(loaded, find_windows(loaded))
    assert linked.busy.tolist() == [5_000, 6_000, 7_000]
    assert linked.replayed.tolist() == [True] * 3
    assert linked.op.tolist() == [-1] * 3


def test_no_launch_at_all_counts_every_event(tmp_path: Path) -> None:
    trace = chrome(k(us=5), gap(us=2), k(us=6), module("a note"))
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert (phase.busy_ns, phase.gap_ns, phase.wall_ns) == (11_000, 2_000, 13_000)
    assert phase.carry_over["events"] == phase.late["events"] == 0
    # Nobody knows when they were launched: no cause is claimed, and no gain of a graph.
    assert phase.anatomy is not None
    assert {cause: ns for cause, ns in phase.anatomy.gaps.items() if ns} == {"unknown": 2_000}
    assert phase.anatomy.graph_speedup is None
    said = " ".join(anatomy_lines(phase))
    assert "idle 2.00 µs of 13.0 µs: unattributed 2.00 µs" in said
    assert "launched in time" not in said
    (note,) = [n for n in phase.notes if "have no op" in n]
    assert note.startswith("2 of 2 device events")


def test_unlinked_events_between_count_with_the_step_around_them(tmp_path: Path) -> None:
    """Before the first linked event: spill; behind the last: late; between: busy, without an op."""
    mm = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])
    trace = chrome(module("ProfilerStep#0", k(us=1), mm, k(us=2), mm, k(us=4)))
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert phase.carry_over == {"events": 1, "ns": 1_000}
    assert phase.late == {"events": 1, "ns": 4_000}
    assert (phase.busy_ns, phase.wall_ns) == (16_000, 16_000)
    assert phase.roles["unknown"] >= 2_000


def test_overlapping_streams_count_once(tmp_path: Path) -> None:
    """10 us on one stream; 6 us on another that start 4 us in: 10 are busy, not 16."""
    trace = chrome(
        step(0, op("a", kernels=[k(us=10), k(us=6, gap_us=-6, stream=9), k(us=5, gap_us=-2)]))
    )
    loaded = load(save(trace, tmp_path / "t.json"))
    linked = link(loaded, find_windows(loaded))
    assert linked.busy.tolist() == [10_000, 0, 3_000]
    assert int(linked.wall[0]) == 13_000


def test_the_dry_gap_is_the_one_that_waits_for_its_launch(tmp_path: Path) -> None:
    """3 us idle with the launch long made, 4 us with the launch after the device ran dry."""
    mm = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])
    trace = chrome(step(0, mm, gap(us=3), mm, gap(us=4, launch=True), mm))
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert (phase.gap_ns, phase.bound["launch"]) == (7_000, 4_000)


def plain(report: Report) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.json.decode(to_json(report))
    values["subject"] = values["baseline"] = None  # names of files
    return values


def small(*, cpu: bool) -> dict[str, Any]:
    def layer(i: int) -> Any:
        at = f"model.layers.{i}"
        linear = [module(f"{at}.mlp.{name}_proj",
                         op("aten::mm", [64, 32], [32, 96], kernels=[k(us=7 + i)]))
                  for name in ("gate", "up")]  # fmt: skip
        act = op("aten::silu", [64, 96], kernels=[k(us=2)])
        return module(at, module(f"{at}.mlp", *linear, act), gap(us=1))

    return chrome(module("prunescope.step#warmup", layer(0)), step(0, layer(0), layer(1)),
                  step(1, layer(0), layer(1)), cpu=cpu)  # fmt: skip


@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("how", ["shuffled", "shifted", "back", "keys"])
def test_order_and_clock_do_not_matter(how: str, tmp_path: Path, *, cpu: bool) -> None:
    trace = small(cpu=cpu)
    changed(trace, how)
    shuffled = save(trace, tmp_path / "b.json")
    assert plain(analyze(shuffled, baseline=shuffled).report) == unchanged(cpu=cpu)


@cache
def unchanged(*, cpu: bool) -> dict[str, Any]:
    """Return the report of the small trace as plain values."""
    with TemporaryDirectory() as folder:
        path = save(small(cpu=cpu), Path(folder) / "a.json")
        return plain(analyze(path, baseline=path).report)


def changed(trace: dict[str, Any], how: str) -> None:
    """Put the trace into another order, or on another clock."""
    events = trace["traceEvents"]
    if how == "shuffled":
        random.Random(1).shuffle(events)
    elif how in ("shifted", "back"):
        for event in events:
            event["ts"] += 2**41 if how == "shifted" else -(2**41)
    else:
        events[:] = [dict(reversed(e.items())) for e in events]
        trace["traceEvents"] = trace.pop("traceEvents")


_SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("shifted", "keys")]


@pytest.mark.parametrize("how", ["shuffled", "back", *_SLOW])
def test_order_and_clock_of_a_real_trace(
    how: str, real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    edit = Edit(real_trace("h100_qwen1.5-0.5b_prefill.json.gz"))
    want = plain(analyze(edit.save(tmp_path / "a.json")).report)
    if how in ("shifted", "back"):
        for event in edit.events:
            event["ts"] += (2 if how == "shifted" else -2) * 10**15
    else:
        changed(edit.trace, how)
        edit.events = edit.trace["traceEvents"]
    assert plain(analyze(edit.save(tmp_path / "b.json")).report) == want


@pytest.mark.parametrize("name", ["a100_legacy_flows.json.gz", "a100_training_graphs_nccl.json.gz",
                                  "v100_legacy_graphs.json.gz"])  # fmt: skip
def test_real_traces_of_old_profilers_link(name: str, real_trace: Callable[[str], Path]) -> None:
    """Most kernels have an op although ids clash and flows have another category."""
    trace = load(real_trace(name))
    linked = link(trace, find_windows(trace))
    for i in range(len(linked.wall)):
        at = linked.step == i
        assert (
            int(linked.busy[at].sum() + linked.gap[at].sum() + linked.trailing_idle[i])
            == linked.wall[i]
        )
    plain_launch = ~linked.replayed & (linked.launched > 0)
    assert (linked.op[plain_launch] >= 0).mean() > 0.9
    assert linked.replayed.any() == ("graphs" in name)
