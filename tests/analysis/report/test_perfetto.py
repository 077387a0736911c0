"""The Perfetto trace: it loads as a Chrome trace, its kernels are those of the frame, nothing nests
wrongly, and the tracks say kind, role, bound and ledger row.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.report.formats import PhaseFrames
from prunescope.analysis.report.perfetto import perfetto_files, render_perfetto
from prunescope.analysis.report.write import write_report
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example
from tests.chrome import chrome, gap, k, module, op, save, step

BF16 = "c10::BFloat16"


def test_both_sides_begin_at_their_step(tmp_path: Path) -> None:
    """Two processes of one file; who analyses it again reads the pruned kernels alone."""
    stories = Path(__file__).resolve().parents[3] / "traces/stories/odd-width"
    pair = analyze(stories / "pruned.json.gz", baseline=stories / "dense.json.gz")
    (data,) = perfetto_files(pair.report, pair.frames, None, pair.dense_frames).values()
    events = json.loads(gzip.decompress(data))["traceEvents"]
    kernels = {
        pid: [e for e in events if e["pid"] == pid and str(e.get("cat", "")).endswith("kernel")]
        for pid in (1, 4)
    }
    (frame,), (dense,) = pair.frames.values(), pair.dense_frames.values()
    assert (len(kernels[1]), len(kernels[4])) == (frame.height, dense.height)
    assert kernels[1][0]["ts"] == kernels[4][0]["ts"]
    path = tmp_path / "both.json.gz"
    path.write_bytes(data)
    again = analyze(path).report.phases["trace"]
    assert again.busy_ns * again.steps == frame["busy"].sum()


def linear(path: str, n: int, us: float) -> Any:
    kernels = [k(us=us, name=f"ampere_bf16_s16816gemm_bf16_128x64_{path[-1]}", grid=(8, 4, 1))]
    return module(path, op("aten::mm", [512, 256], [256, n], dtype=BF16, kernels=kernels))


def trace(n: int, *extra: Any) -> dict[str, Any]:
    layer = "model.layers.0.mlp"
    body = [
        linear(f"{layer}.up_proj", n, us=7 * n / 1024), gap(us=3, launch=True),
        linear(f"{layer}.down_proj", 256, us=5), *extra,
    ]  # fmt: skip
    return chrome(step(0, *body), gap(us=2), step(1, *body))


@pytest.fixture
def pair(tmp_path: Path) -> Analysis:
    copy = op("aten::index_select", [512, 256], [], [9], dtype=BF16,
              kernels=[k(us=4, name="indexSelectLargeIndex")])  # fmt: skip
    dense = save(trace(1024), tmp_path / "dense.json.gz")
    pruned = save(trace(512, module("model.layers.0.mlp.up_proj", copy)), tmp_path / "p.json.gz")
    return analyze(pruned, baseline=dense, options=Options(sparsity=0.5, device="h100-sxm"))


def events(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(data))["traceEvents"]
    return found


def slices(data: bytes, cat: str) -> list[dict[str, Any]]:
    return [e for e in events(data) if e.get("cat") == cat]


def one(done: Analysis) -> bytes:
    (data,) = perfetto_files(done.report, done.frames).values()
    return data


def test_the_kernels_are_those_of_the_frame(pair: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(one(pair))
    loaded, frame = load(path), pair.frames["trace"]
    assert loaded.on_device
    assert sorted(loaded.device["dur"].tolist()) == sorted(frame["duration"].to_list())
    starts = loaded.device["ts"] - loaded.device["ts"].min()
    assert sorted(starts.tolist()) == sorted((frame["start"] - frame["start"].min()).to_list())
    assert {loaded.names[i] for i in loaded.device["name"]} == set(frame["name"].to_list())


def test_it_can_be_analyzed_again_with_the_same_busy_time(pair: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(one(pair))
    again = analyze(path, options=Options(device="h100-sxm")).report.phases["trace"]
    first = pair.report.phases["trace"]
    assert (first.steps, again.steps) == (2, 1)  # no launches, so no windows: the trace is one step
    assert again.busy_ns == 2 * first.busy_ns


def test_every_kernel_has_a_slice_on_every_track(pair: Analysis) -> None:
    data, frame = one(pair), pair.frames["trace"]
    for column in ("kind", "role", "bound"):
        named = sorted(e["name"] for e in slices(data, f"prunescope.{column}")
                       if not e["name"].startswith("idle"))  # fmt: skip
        assert named == sorted(frame[column].to_list())
    idle = [e for e in slices(data, "prunescope.bound") if e["name"].startswith("idle")]
    assert sum(round(e["dur"] * 1000) for e in idle) == frame["gap"].sum()
    assert {e["name"] for e in idle} >= {"idle: starved, nothing launched"}


def test_the_ledger_track_names_the_row_that_the_role_moved_most(pair: Analysis) -> None:
    ledger = slices(one(pair), "prunescope.ledger")
    kernels = slices(one(pair), "kernel")
    by_place = {(e["tid"] // 10, e["ts"]): e["name"] for e in ledger}
    said = {e["args"]["op"]: by_place[e["tid"] // 10, e["ts"]] for e in kernels}
    assert said["aten::index_select"].startswith("added work +4.0")  # 4 us in each of two steps
    assert len(ledger) == len(kernels)


def test_without_a_baseline_there_is_no_ledger_track(tmp_path: Path) -> None:
    done = analyze(save(trace(1024), tmp_path / "t.json"), options=Options(device="h100-sxm"))
    assert slices(one(done), "prunescope.ledger") == []
    names = [e["args"]["name"] for e in events(one(done)) if e["name"] == "thread_name"]
    assert "stream 7: bound" in names and not any("ledger" in n for n in names)


def nested_or_apart(spans: list[tuple[float, float]]) -> bool:
    open_ends: list[float] = []
    for start, end in sorted(spans, key=lambda s: (s[0], -s[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        if open_ends and end > open_ends[-1]:
            return False
        open_ends.append(end)
    return True


def well_formed(data: bytes) -> bool:
    tracks: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for e in events(data):
        if e["ph"] == "X":
            tracks[e["tid"]].append((round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000)))
    return all(nested_or_apart(spans) for spans in tracks.values())


def test_overlapping_streams_and_kernels_get_lanes_of_their_own(tmp_path: Path) -> None:
    body = [
        op("aten::mm", [64, 64], [64, 64], kernels=[k(us=9, stream=7)]),
        op("aten::mm", [64, 64], [64, 64], kernels=[k(us=9, stream=8, gap_us=-4)]),
        op("aten::mm", [64, 64], [64, 64], kernels=[k(us=9, stream=8, gap_us=-3)]),
    ]
    done = analyze(save(chrome(*body), tmp_path / "t.json"), options=Options(device="h100-sxm"))
    assert well_formed(one(done))
    named = {e["args"]["name"] for e in events(one(done)) if e["name"] == "thread_name"}
    assert {"stream 7: kernels", "stream 8: kernels", "stream 8 (2): kernels"} <= named


@pytest.mark.parametrize(
    "name",
    ["h100_qwen1.5-0.5b_prefill.json.gz", "mi300x_sglang_qwen3-8b_decode_graph.json.gz",
     "mi210_gpu_only.json.gz"],
)  # fmt: skip
def test_real_traces_are_well_formed_and_load(
    real_trace: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    done = analyze(real_trace(name))
    data = one(done)
    assert well_formed(data)
    (tmp_path / "t.json.gz").write_bytes(data)
    assert (
        int(load(tmp_path / "t.json.gz").device["dur"].sum())
        == done.frames["trace"]["duration"].sum()
    )


def test_a_cpu_trace_becomes_host_ops(tmp_path: Path) -> None:
    body = op("aten::mm", [64, 64], [64, 64], inner=[op("aten::copy_", [64], us=1)], us=5)
    path = save(chrome(body, cpu=True), tmp_path / "t.json")
    data = one(analyze(path))
    assert well_formed(data)
    assert sorted(e["name"] for e in slices(data, "cpu_op")) == ["aten::copy_", "aten::mm"]


def test_the_same_frame_gives_the_same_bytes_and_hostile_names_are_inert(pair: Analysis) -> None:
    assert one(pair) == one(pair)
    frame = pair.frames["trace"].with_columns(name=pl.lit(example.HOSTILE))
    data = render_perfetto("p", pair.report.phases["trace"], frame)
    assert "\x1b" not in gzip.decompress(data).decode()
    assert slices(data, "kernel")[0]["name"].endswith("\\x1b[31m")


def test_the_format_needs_frames_and_is_written(pair: Analysis, tmp_path: Path) -> None:
    (path,) = write_report(
        pair.report, tmp_path / "o", formats=("perfetto",), frames=PhaseFrames(pair.frames)
    )
    assert path.name == "trace-trace.perfetto.json.gz"
    with pytest.raises(PrunescopeError, match="perfetto holds the kernels frame"):
        write_report(pair.report, tmp_path / "o2", formats=("perfetto",))


def test_the_host_stands_below_the_kernels_as_it_was_recorded(
    pair: Analysis, tmp_path: Path
) -> None:
    (data,) = perfetto_files(pair.report, pair.frames, pair.hosts()).values()
    ops = [e for e in slices(data, "prunescope.host_op") if e["name"] == "aten::mm"]
    assert len(ops) == 4  # two linears in each of two steps
    assert ops[0]["args"]["shapes"] == "[[512, 256], [256, 512]]"
    scopes = {e["name"] for e in slices(data, "prunescope.host_scope")}
    assert {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"} <= scopes
    launches = slices(data, "prunescope.host_launch")
    kernels = sorted(slices(data, "kernel"), key=lambda e: e["ts"])
    assert len(launches) == len(kernels) == 6
    assert min(e["ts"] for e in events(data) if "ts" in e) == 0
    first = min(launches, key=lambda e: e["ts"])
    assert first["ts"] <= kernels[0]["ts"]  # one clock
    path = tmp_path / "x.json.gz"
    path.write_bytes(data)
    again = analyze(path, options=Options(device="h100-sxm")).report.phases["trace"]
    phase = pair.report.phases["trace"]
    assert again.busy_ns * again.steps == phase.busy_ns * phase.steps


def test_a_phase_of_an_engine_shows_its_own_host_time(real_trace: Callable[[str], Path]) -> None:
    done = analyze(real_trace("mi300x_sglang_qwen3-8b_prefilldecode.json.gz"))
    files = perfetto_files(done.report, done.frames, done.hosts())
    for data in files.values():
        host = [e for e in events(data) if e.get("pid") == 2 and "ts" in e]
        assert host
        assert min(e["ts"] for e in host) >= 0
