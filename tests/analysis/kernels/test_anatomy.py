"""The anatomy of a phase: tiles against the grids of real traces, gaps by cause, good N."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import measured
from prunescope.analysis.schema.anatomy import Anatomy, Shape
from prunescope.analysis.schema.report import Phase, Report
from tests.chrome import chrome, gap, k, module, op, save, step

FITS = ("exact", "padded", "split", "persistent")
# Share of the GEMM time whose kernels' names tell a tile and whose op tells a shape. The others:
# the ops of graphs and compiled functions tell no shape (A100 training, V100), MoE kernels neither
# (B200), a replay on ROCm tells no grid, a trace without host ops nothing.
TESTABLE = {
    "a100_legacy_flows": 0.99,
    "a100_training_graphs_nccl": 0.01,
    "b200_eager": 0.13,
    "h100_owlv2-large": 0.99,
    "h100_qwen1.5-0.5b_prefill": 1.0,
    "h100_vit": 1.0,
    "mi210_gpu_only": 0.0,
    "mi300x_compile_triton": 1.0,
    "mi300x_sglang_qwen3-8b_decode_graph": 0.0,
    "mi300x_sglang_qwen3-8b_prefilldecode": 1.0,
    "v100_legacy_graphs": 0.004,
}


def anatomy_of(phase: Phase) -> Anatomy:
    assert phase.anatomy is not None
    return phase.anatomy


def told(tmp_path: Path, trace: dict[str, Any]) -> Phase:
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]


@pytest.mark.parametrize("name", TESTABLE)
def test_tiles_explain_the_grids_of_real_traces(
    name: str, real_report: Callable[[str], Report]
) -> None:
    """Of the GEMM time that can be tested at least 90 %; here all of it."""
    phase = real_report(f"{name}.json.gz").phases["trace"]
    tiles = anatomy_of(phase).tiles
    explained = sum(tiles.get(fit, 0.0) for fit in FITS)
    tested = explained + tiles.get("unexplained", 0.0)
    assert sum(tiles.values()) == pytest.approx(
        sum(phase.kinds.get(kind, 0.0) for kind in ("gemm", "gemv", "batched_gemm",
                                                    "sparse_gemm", "grouped_gemm"))
    )  # fmt: skip
    assert tested >= TESTABLE[name] * sum(tiles.values())
    assert explained >= 0.999 * tested
    if tested:
        line = next(x for x in measured.idle_and_tiles(phase) if x.startswith("tiles"))
        assert "explain the grids of 100.0 %" in line


# The paper's q projection: M = 4096 tokens, 4096 x 4096, pruned in N by 10 to 70 %.
PAPER = {0.1: 1.00, 0.2: 1.01, 0.3: 1.01, 0.4: 1.47, 0.5: 1.48, 0.6: 1.48}  # measured; 0.7: 2.45
TILE = "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_32x3_tn"


def projection(name: str, n: int = 4096, *, us: float = 400, tiles: int = 512) -> dict[str, Any]:
    """One GEMM on 188 SMs, one block of 256 threads and 96 KiB on each."""
    kernel = k(us=us, name=name, grid=(tiles, 1, 1), block=(256, 1, 1), registers=128, shared=98304)
    gemm = op("aten::mm", [4096, 4096], [4096, n], dtype="c10::BFloat16", kernels=[kernel])
    trace = chrome(step(0, module("model.layers.0.self_attn.q_proj", gemm)),
                   step(1, module("model.layers.0.self_attn.q_proj", gemm)))  # fmt: skip
    trace["deviceProperties"][0]["name"] = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    return trace


def at(shape: Shape, n: int) -> float:
    return next(ns for value, ns in shape.curve if value == n)


def test_the_steps_of_the_papers_q_projection(tmp_path: Path) -> None:
    """⌈16·kept⌉ columns of 32 tiles on 188 SMs: 512 tiles are 3 waves, 320 are 2, 160 one."""
    dense = save(projection(TILE), tmp_path / "dense.json")
    waves = {0.1: 3, 0.2: 3, 0.3: 3, 0.4: 2, 0.5: 2, 0.6: 2, 0.7: 1}
    for share, whole in waves.items():
        n = round(4096 * (1 - share))
        pruned = save(projection(TILE, n, tiles=32 * math.ceil(n / 256)), tmp_path / "p.json")
        (shape,) = [
            s
            for s in anatomy_of(analyze(pruned, baseline=dense).report.phases["trace"]).shapes
            if s.axis == "N"
        ]
        assert (shape.refused, shape.n, shape.dense) == (None, n, 4096)
        assert math.ceil(shape.waves or 0) == whole
        speedup = at(shape, 4096) / at(shape, n)
        assert speedup == pytest.approx(3 / whole, rel=1e-6)
        if share in PAPER:
            assert speedup == pytest.approx(PAPER[share], rel=0.025)


def test_nothing_is_claimed_where_the_tile_is_unknown(tmp_path: Path) -> None:
    (shape,) = anatomy_of(told(tmp_path, projection("my_gemm_kernel"))).shapes
    assert shape.refused == "the kernel's name states no tile that fits"
    assert (shape.below, shape.above, shape.curve, shape.waves) == (None, None, [], None)


def test_nor_where_the_tile_does_not_explain_the_grid(tmp_path: Path) -> None:
    """513 blocks for 512 tiles."""
    (shape,) = anatomy_of(told(tmp_path, projection(TILE, tiles=513))).shapes
    assert shape.refused == "the kernel's name states no tile that fits"


def test_good_dimensions_are_the_last_of_a_wave(tmp_path: Path) -> None:
    """N = 2944 is 12 columns, 384 tiles of 188: 3 waves. 11 columns, N = 2816, are 352 and 2."""
    (shape,) = anatomy_of(told(tmp_path, projection(TILE, 2944, tiles=384))).shapes
    assert shape.below is not None
    assert shape.below.value == 2816
    assert shape.below.change_ns == pytest.approx(-400_000 / 3)
    assert shape.below.low_ns is None  # one GEMM has no spread
    # Up to 17 columns (544 tiles) there are 3 waves: further than an eighth away.
    assert shape.above is None


def test_an_unaligned_k_is_named_and_its_worth_unknown(tmp_path: Path) -> None:
    kernel = k(us=400, name=TILE, grid=(512, 1, 1), block=(256, 1, 1), registers=128, shared=98304)
    gemm = op("aten::mm", [4096, 3435], [3435, 4096], dtype="c10::BFloat16", kernels=[kernel])
    trace = chrome(step(0, gemm), step(1, gemm))
    trace["deviceProperties"][0]["name"] = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    shape = next(s for s in anatomy_of(told(tmp_path, trace)).shapes if s.axis == "K")
    assert shape.below is not None
    assert shape.above is not None
    assert (shape.below.value, shape.above.value) == (3424, 3440)
    assert (shape.below.change_ns, shape.above.change_ns) == (None, None)


@pytest.mark.parametrize(
    ("m", "k_", "n"),
    [(4096, 4096, 2**40), (1, 1, 2**45), (4096, 2**50, 4095), (3, 5, 1), (2**20, 0, 4096)],
)
def test_forged_shapes_take_no_time_and_give_numbers(
    m: int, k_: int, n: int, tmp_path: Path
) -> None:
    kernel = k(us=400, name=TILE, grid=(2, 1, 1), block=(256, 1, 1), registers=128, shared=98304)
    gemm = op("aten::mm", [m, k_], [k_, n], dtype="c10::BFloat16", kernels=[kernel])
    anatomy = anatomy_of(told(tmp_path, chrome(step(0, gemm), step(1, gemm))))
    for shape in anatomy.shapes:
        assert len(shape.curve) <= 100
        assert all(math.isfinite(x) for pair in shape.curve for x in pair)


def test_gaps_by_cause_and_what_a_graph_would_save(tmp_path: Path) -> None:
    """GEMMs of 10 us: 3 us launched in time, 5 us late, 4 us before a copy, 6 us of which the first
    one is the end of a wait."""
    mm = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])
    copy = op("aten::copy_", [64], [64], kernels=[k(us=2, cat="gpu_memcpy")])
    trace = chrome(
        step(0, mm, gap(us=3), mm, gap(us=5, launch=True), mm, gap(us=4, launch=True), copy,
             mm, gap(us=6, launch=True), mm)
    )  # fmt: skip
    last = max((e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"])
    thread = {key: next(e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime")[key]
              for key in ("pid", "tid")}  # fmt: skip
    (launch,) = (
        e for e in trace["traceEvents"]
        if e["cat"] == "cuda_runtime" and e["args"]["correlation"] == last["args"]["correlation"]
    )  # fmt: skip
    launch["ts"] = last["ts"] - 2
    (around,) = (
        e for e in trace["traceEvents"]
        if e["cat"] == "cpu_op" and e["args"]["External id"] == launch["args"]["External id"]
    )  # fmt: skip
    around["ts"] = launch["ts"]
    (window,) = (e for e in trace["traceEvents"] if e["name"] == "prunescope.step#0")
    window["dur"] = last["ts"] - window["ts"]
    trace["traceEvents"].append(
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", **thread,
         "ts": last["ts"] - 8, "dur": 3, "args": {"correlation": 999_999}}
    )  # fmt: skip
    phase = told(tmp_path, trace)
    anatomy = anatomy_of(phase)
    # The copy's own launch is a copy call of 50 ns.
    gaps = {cause: ns for cause, ns in anatomy.gaps.items() if ns}
    assert gaps == {"host": 13_950, "sync": 1_000, "memcpy": 50, "device": 3_000}
    assert sum(anatomy.gaps.values()) == phase.gap_ns + phase.tail_ns
    assert anatomy.graph_speedup == pytest.approx(70_000 / (70_000 - 13_950))
    waits = {one.op: one.wait_ns for one in anatomy.host}
    assert waits == {"aten::mm": 11_000, "aten::copy_": 4_000, "cudaStreamSynchronize": 0}


def test_a_host_trace_has_no_graph_and_no_tiles(tmp_path: Path) -> None:
    cpu = chrome(step(0, op("aten::mm", [4, 4], [4, 4], us=5), gap(us=2)), cpu=True)
    phase = told(tmp_path, cpu)
    anatomy = anatomy_of(phase)
    assert anatomy.graph_speedup is None
    assert (anatomy.tiles, anatomy.host, anatomy.shapes) == ({}, [], [])
    assert sum(anatomy.gaps.values()) == phase.gap_ns + phase.tail_ns == 2_000


_LATE = ("host", "first_call", "allocator", "collective", "sync", "memcpy", "held")


@pytest.mark.parametrize("name", ["h100_qwen1.5-0.5b_prefill", "b200_eager", "a100_legacy_flows",
                                  "mi300x_sglang_qwen3-8b_decode_graph"])  # fmt: skip
def test_the_parts_sum_to_the_phase(name: str, real_report: Callable[[str], Report]) -> None:
    phase = real_report(f"{name}.json.gz").phases["trace"]
    anatomy = anatomy_of(phase)
    for kind, parts in anatomy.kind_bounds.items():
        assert sum(parts.values()) == pytest.approx(phase.kinds[kind])
    assert sum(one.busy_ns for one in anatomy.layers) == pytest.approx(phase.busy_ns)
    assert sum(one.gap_ns for one in anatomy.layers) == pytest.approx(phase.gap_ns)
    assert sum(anatomy.gaps.values()) == pytest.approx(phase.gap_ns + phase.tail_ns)
    late = sum(anatomy.gaps[cause] for cause in _LATE)
    assert late >= phase.bound["launch"] - 1e-6  # or held, though it was launched in time
    assert late - anatomy.gaps["held"] <= phase.bound["launch"] + 1e-6
    timely = phase.wall_ns - anatomy.gaps["host"]  # what is no dispatch no graph can spare
    assert 1 <= (anatomy.graph_speedup or 0) <= phase.wall_ns / timely + 1e-9
    assert sum(one.ns for one in anatomy.idle) == pytest.approx(phase.gap_ns)


def test_the_intervals_of_a_real_trace(real_report: Callable[[str], Report]) -> None:
    """Qwen's 128 x 128 tiles on 132 SMs: 1024 columns are 8·70 = 560 tiles, 5 waves; 7·70 = 490 are
    4, and 9·70 = 630 still 5."""
    phase = real_report("h100_qwen1.5-0.5b_prefill.json.gz").phases["trace"]
    q = next(s for s in anatomy_of(phase).shapes if s.role == "q")
    assert q.below is not None
    assert q.above is not None
    assert (q.below.value, q.above.value) == (896, 1152)
    assert q.below.change_ns == pytest.approx(-q.busy_ns / 5)
    assert q.above.change_ns == pytest.approx(0.0)
    assert q.below.low_ns is not None
    assert q.below.high_ns is not None
    assert q.below.low_ns < q.below.change_ns < q.below.high_ns < 0
