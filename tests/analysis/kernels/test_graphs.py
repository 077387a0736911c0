"""Graph replays: each launch matched on its own, and what an eager trace must hold for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.graph_match import align
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.finding_cases import layers, mm, pointwise
from tests.analysis.replays import DEVICE, read, replayed
from tests.chrome import chrome, k, op, save

Real = Callable[[str], Path]
QWEN = "h100_qwen1.5-0.5b_prefill.json.gz"
DECODE = "mi300x_sglang_qwen3-8b_decode_"


def model(m: int = 512) -> dict[str, Any]:
    """Two layers: q, an activation, down."""
    return layers(
        ("self_attn.q_proj", mm(m, 2048, 2048, us=20, name="sm90_gemm_q")),
        ("mlp.act_fn", pointwise("aten::silu", [m, 4096], us=10, kernel="silu_kernel")),
        ("mlp.down_proj", mm(m, 2048, 4096, us=30, name="sm90_gemm_down")),
    )


def told(
    tmp_path: Path, replay: dict[str, Any], eager: dict[str, Any] | Path | None = None
) -> Report:
    if isinstance(eager, dict):
        eager = save(eager, tmp_path / "eager.json")
    options = Options(eager_trace=eager)
    return analyze(save(replay, tmp_path / "replay.json"), options=options).report


def only(report: Report) -> Phase:
    (phase,) = report.phases.values()
    return phase


def rows(phase: Phase) -> set[tuple[str, int | None, int | None, int | None, float]]:
    return {(g.role, g.m, g.n, g.k, g.count) for g in phase.gemms}


@pytest.mark.parametrize(("times", "pieces"), [(1, 1), (3, 1), (1, 2), (3, 2), (2, 3)])
def test_every_graph_launch_is_matched_on_its_own(times: int, pieces: int, tmp_path: Path) -> None:
    """Two layers of q and down, replayed `times` over without a step to tell them apart."""
    report = told(tmp_path, replayed(model(), times=times, pieces=pieces), model())
    phase = only(report)
    assert rows(phase) == {("q", 512, 2048, 2048, 2 * times), ("down", 512, 2048, 4096, 2 * times)}
    assert {g.role: g.busy_ns for g in phase.gemms} == {"q": 40e3 * times, "down": 60e3 * times}
    assert [g.layers for g in phase.gemms] == [[0, 1], [0, 1]]
    assert any(note.startswith("100.0 % of the time of") for note in phase.notes)
    assert report.warnings == []


def test_three_replays_of_a_real_step(real_trace: Real, tmp_path: Path) -> None:
    """Qwen as three unannotated replays: the GEMMs of its eager pass three times, to the ns."""
    path = real_trace(QWEN)
    once = {(g.role, g.m, g.n, g.k): (g.count, g.busy_ns)
            for g in analyze(path).report.phases["trace"].gemms}  # fmt: skip
    phase = only(told(tmp_path, replayed(read(path), times=3), path))
    thrice = {(g.role, g.m, g.n, g.k): (g.count, g.busy_ns) for g in phase.gemms}
    assert thrice.keys() == once.keys()
    for key, (count, busy) in once.items():
        assert thrice[key][0] == 3 * count
        assert thrice[key][1] == pytest.approx(3 * busy, abs=3 * count)  # clocks are moved


def test_a_replay_alone_has_kinds_and_nulls(tmp_path: Path) -> None:
    """The op around the graph launch has shapes; they are not those of the kernels."""
    phase = only(told(tmp_path, replayed(model())))
    assert rows(phase) == {("unknown", None, None, None, 4.0)}
    assert sum(g.busy_ns for g in phase.gemms) == phase.kinds["gemm"] == 100e3
    assert phase.kinds["activation"] == 20e3
    assert phase.coverage["role"] == phase.coverage["work"] == 0.0
    assert {g.op for g in phase.gemms} == {None}


@pytest.mark.parametrize("name", ["v100_legacy_graphs", "a100_training_graphs_nccl"])
def test_graphs_of_real_traces_alone(name: str, real_report: Callable[[str], Report]) -> None:
    """A compiled function that launches a graph lends its shapes to none of its kernels."""
    phase = real_report(f"{name}.json.gz").phases["trace"]
    kinds = sum(phase.kinds.get(kind, 0.0) for kind in (*GEMM_KINDS, "attention"))
    assert not any("CompiledFunction" in (g.op or "") for g in phase.gemms)
    # Steps that run eagerly hold ops; none of their shapes may fall on the kernels of a replay.
    assert all(g.op is not None for g in phase.gemms if g.m is not None)
    assert sum(g.busy_ns for g in phase.gemms) == pytest.approx(kinds, rel=0.002)


def cut(trace: dict[str, Any]) -> bytes:
    text = json.dumps({**trace, "deviceProperties": []}).encode()
    return text[: len(text) // 2]


def only_of(trace: dict[str, Any], *categories: str) -> bytes:
    kept = [e for e in trace["traceEvents"] if e.get("cat") in categories]
    return json.dumps({**trace, "traceEvents": kept}).encode()


UNUSABLE = {
    "ops without launches, cut": lambda t: cut({**t, "traceEvents": [
        e for e in t["traceEvents"] if e["cat"] == "cpu_op"]}),
    "only kernels": lambda t: only_of(t, "kernel"),
    "kernels and launches": lambda t: only_of(t, "kernel", "cuda_runtime"),
    "only ops": lambda t: only_of(t, "cpu_op"),
    "ops and kernels": lambda t: only_of(t, "cpu_op", "kernel"),
    "a replay": lambda t: json.dumps(replayed(t)).encode(),
    "empty": lambda _t: b"",
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_eager_trace_of_no_use_is_one_sentence(what: str, tmp_path: Path) -> None:
    eager = tmp_path / "eager.json"
    eager.write_bytes(UNUSABLE[what](model()))
    with pytest.raises(PrunescopeError) as error:
        told(tmp_path, replayed(model()), eager)
    assert "eager.json" in error.value.problem
    assert "\n" not in error.value.problem
    assert error.value.hint


def test_a_cut_eager_trace_warns_and_tells_what_it_holds(tmp_path: Path) -> None:
    """Cut in the second layer: all of the first is known, and the report is a partial one."""
    text = json.dumps({**model(), "schemaVersion": 1}).encode()
    eager = tmp_path / "eager.json"
    at = text.rindex(b'"silu_kernel"')
    eager.write_bytes(text[:at])
    report = told(tmp_path, replayed(model()), eager)
    phase = only(report)
    assert report.partial
    assert any("eager.json" in w and "cut off" in w for w in report.warnings)
    known = {g.role: g.count for g in phase.gemms if g.m is not None}
    assert known["down"] == 1


def test_a_cut_real_trace_as_the_eager_one(real_trace: Real, tmp_path: Path) -> None:
    eager = tmp_path / "cut.json"
    eager.write_bytes(json.dumps(read(real_trace("h100_vit.json.gz"))).encode()[:1_100_000])
    options = Options(eager_trace=eager)
    with pytest.raises(PrunescopeError, match=r"cut\.json"):
        analyze(real_trace(f"{DECODE}graph.json.gz"), options=options)


def test_lost_kernels_cost_themselves_and_move_nothing(real_trace: Real, tmp_path: Path) -> None:
    """Four of Qwen's 1,197 replayed kernels lost: layers repeat, and each other keeps its own."""
    path = real_trace(QWEN)
    whole, torn = replayed(read(path)), replayed(read(path))
    device = sorted((e for e in torn["traceEvents"] if e["cat"] in DEVICE), key=lambda e: e["ts"])
    lost = {id(device[i]) for i in (100, 500, 501, 900)}
    torn["traceEvents"] = [e for e in torn["traceEvents"] if id(e) not in lost]

    def layers_of(trace: dict[str, Any], name: str) -> list[tuple[int, int | None, str]]:
        options = Options(eager_trace=path)
        frame = analyze(save(trace, tmp_path / name), options=options).frames["trace"]
        return list(frame.select("start", "layer", "role").iter_rows())

    expected = set(layers_of(whole, "whole.json"))
    found = layers_of(torn, "torn.json")
    assert len(found) == len(expected) - 4
    assert set(found) <= expected


@pytest.mark.parametrize(
    ("replay", "eager", "found"),
    [
        ("abcabc", "abcabc", [0, 1, 2, 3, 4, 5]),
        ("abcbc", "abcabc", [0, 1, 2, 4, 5]),
        ("abcxabc", "abcabc", [0, 1, 2, -1, 3, 4, 5]),
        ("bc", "abcd", [1, 2]),
        ("xyz", "abc", [-1, -1, -1]),
        ("cab", "abc", [-1, 0, 1]),
        ("a", "", [-1]),
    ],
)
def test_kernels_align_with_the_fewest_changes(replay: str, eager: str, found: list[int]) -> None:
    assert align(list(replay), list(eager)).tolist() == found


@given(st.text("abcd", min_size=1, max_size=30), st.text("abcd", max_size=30))
def test_an_alignment_is_a_longest_common_run(replay: str, eager: str) -> None:
    """Against the textbook table; names agree and positions grow."""
    at = align(list(replay), list(eager))
    rows = [i for i in range(len(replay)) if at[i] >= 0]
    assert all(replay[i] == eager[at[i]] for i in rows)
    assert all(at[i] < at[j] for i, j in pairwise(rows))
    best = [[0] * (len(eager) + 1) for _ in range(len(replay) + 1)]
    for i, a in enumerate(replay):
        for j, b in enumerate(eager):
            best[i + 1][j + 1] = best[i][j] + 1 if a == b else max(best[i][j + 1], best[i + 1][j])
    assert len(rows) == best[-1][-1]


def test_a_very_different_run_of_kernels_is_aligned_soon() -> None:
    """20,000 names against 20,000 names in another period: no square of that in time."""
    replay = [f"k{i % 7}" for i in range(20_000)]
    eager = [f"k{i % 11}" for i in range(20_000)]
    at = align(replay, eager)
    assert at[:7].tolist() == list(range(7))
    assert all(replay[i] == eager[at[i]] for i in range(len(replay)) if at[i] >= 0)


def test_graph_nodes_tell_the_order_of_what_ran_side_by_side(tmp_path: Path) -> None:
    """Kernels in another order of time than captured: found by their nodes, where these stand."""
    trace = replayed(model(), times=2)
    kernels = [e for e in trace["traceEvents"] if e["cat"] in DEVICE]
    for turn in (kernels[:6], kernels[6:]):
        begin = turn[0]["ts"]
        for node, event in enumerate(turn):
            event["args"]["graph node id"] = 40 + node
        for event in reversed(turn):
            event["ts"], begin = begin, begin + event["dur"]
    phase = only(told(tmp_path, trace, model()))
    assert rows(phase) == {("q", 512, 2048, 2048, 4.0), ("down", 512, 2048, 4096, 4.0)}
    assert any(note.startswith("100.0 % of the time of") for note in phase.notes)
    for event in kernels:
        del event["args"]["graph node id"]
    assert rows(only(told(tmp_path, trace, model()))) != rows(phase)


def test_replayed_kernels_are_counted_a_step(tmp_path: Path) -> None:
    """Two steps that replay a graph of two kernels each; one of them replays it twice."""
    made = replayed(chrome(op("aten::mm", [8, 8], [8, 8], kernels=[k(us=10), k(us=10)])), times=3)
    graphs = sorted(e["ts"] for e in made["traceEvents"] if e["name"] == "cudaGraphLaunch")
    for number, (first, last) in enumerate(((0, 1), (2, 2))):
        made["traceEvents"].append(
            {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{number}", "pid": 1,
             "tid": 1, "ts": graphs[first] - 2, "dur": graphs[last] - graphs[first] + 10,
             "args": {}}
        )  # fmt: skip
    (phase,) = analyze(save(made, tmp_path / "t.json")).report.phases.values()
    assert phase.kernels_per_step == [4, 2]
    (note,) = [one for one in phase.notes if "graph replays" in one]
    assert note.startswith("3 kernels a step were launched by graph replays")


@pytest.mark.parametrize("eager", [False, True])
def test_what_a_replay_copies_and_fills_is_no_kernel(tmp_path: Path, *, eager: bool) -> None:
    """A replay of a kernel, a copy and a fill."""
    one = op("aten::mm", [8, 8], [8, 8],
             kernels=[k(us=10), k(us=2, cat="gpu_memcpy", name="Memcpy DtoD"),
                      k(us=2, cat="gpu_memset", name="Memset (Device)")])  # fmt: skip
    other = chrome(op("aten::silu", [8, 8], kernels=[k(us=10, name="silu_kernel")]))
    phase = only(told(tmp_path, replayed(chrome(one)), other if eager else None))
    (note,) = [one for one in phase.notes if "graph replays" in one]
    assert note.startswith(
        "1 kernels and 2 copies and memsets a step were launched by graph replays and have no op"
    )


def test_replayed_kernels_of_a_real_trace(real_report: Callable[[str], Report]) -> None:
    """The A100's steps replay 27 kernels and 42 memsets."""
    (phase,) = real_report("a100_training_graphs_nccl.json.gz").phases.values()
    assert any(
        note.startswith("27 kernels and 42 copies and memsets a step were launched by graph")
        for note in phase.notes
    )
