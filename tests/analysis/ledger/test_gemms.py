"""The GEMM table: a real trace against the tables that TraceLens printed, and pairs by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from prunescope.analysis.device.hardware import find_device
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import pair_calls
from prunescope.analysis.ledger.reported_gemms import build_gemm_rows
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.report import measured
from prunescope.analysis.schema.report import GemmRow as Row
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.gemm import Gemm


@pytest.fixture(scope="module")
def h100(real_trace: Callable[[str], Path]) -> Analysis:
    return analyze(real_trace("h100_qwen1.5-0.5b_prefill.json.gz"))


SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def table(name: str) -> list[dict[str, str]]:
    path = SHARED / "reference" / f"h100_qwen1.5-0.5b_{name}.csv"
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/reference/{path.name} beside the checkout")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def phase(analysis: Analysis) -> Phase:
    return analysis.report.phases["trace"]


def test_every_gemm_row_of_the_reference(h100: Analysis) -> None:
    """Their rows are ours summed over roles; kernel time with the workspace memsets."""
    for want in table("gemm"):
        m, n, k, batch = (int(want[f"param: {x}"]) for x in "MNKB")
        mine = [g for g in phase(h100).gemms
                if (g.op, g.m, g.n, g.k, g.batch) == (want["name"], m, n, k, batch)]  # fmt: skip
        assert sum(g.count for g in mine) == int(want["name_count"])
        microseconds = sum(g.busy_ns for g in mine) / 1000
        assert microseconds == pytest.approx(float(want["Kernel Time (µs)_sum"]), rel=1e-3)
        for g in mine:
            assert g.flop == 2 * batch * m * n * k
            # They add the bias of an addmm to its FLOPs: M·N of 2·M·N·K, 0.05 % at K = 1024.
            bias = m * n if want["param: bias"] == "true" else 0
            theirs = float(want["GFLOPS_first"]) * 1e9
            assert g.flop == pytest.approx(theirs - bias, rel=1e-3 if bias else 1e-9)
            # Their MB are MiB; M·K + K·N + M·N elements of 2 bytes, and the bias of an addmm.
            theirs = float(want["Data Moved (MB)_first"]) * 2**20
            assert g.bytes == pytest.approx(theirs, rel=2e-3)


def test_the_attention_row_of_the_reference(h100: Analysis) -> None:
    """They take S²/2 pairs of a causal attention, we S(S+1)/2: 560/559 of theirs."""
    (want,) = table("sdpa")
    qk, pv = (next(g for g in phase(h100).gemms if g.group == x) for x in ("qk", "pv"))
    batch, heads, s, d = (int(want[f"param: {x}"]) for x in ("B", "H_Q", "N_Q", "d_h_qk"))
    assert (qk.batch, qk.m, qk.n, qk.k) == (batch * heads, s, s, d)
    assert (pv.batch, pv.m, pv.n, pv.k) == (batch * heads, s, d, s)
    assert qk.flop is not None
    assert pv.flop is not None
    ours = qk.flop + pv.flop
    assert ours == 2 * batch * heads * d * s * (s + 1)
    assert ours / (s + 1) * s == pytest.approx(float(want["GFLOPS_first"]) * 1e9, rel=1e-9)
    assert qk.count == pv.count == int(want["name_count"])
    assert qk.split
    assert pv.split
    total = (qk.busy_ns + pv.busy_ns) / 1000
    assert total == pytest.approx(float(want["Kernel Time (µs)_sum"]), rel=1e-3)
    moved = float(want["Data Moved (MB)_first"]) * 2**20
    assert (qk.bytes or 0) + (pv.bytes or 0) == pytest.approx(moved, rel=1e-9)


def test_the_timeline_of_the_reference(h100: Analysis) -> None:
    times = {r["type"]: float(r["time ms"]) * 1e6 for r in table("gpu_timeline")}
    p = phase(h100)
    assert p.busy_ns == pytest.approx(times["busy_time"], rel=1e-3)
    assert p.gap_ns == pytest.approx(times["idle_time"], rel=1e-3)
    assert p.wall_ns == pytest.approx(times["total_time"], rel=1e-3)
    assert p.wall_ns == p.busy_ns + p.gap_ns + p.tail_ns


def test_spill_is_named(h100: Analysis) -> None:
    p = phase(h100)
    assert p.carry_over["events"] == 509
    assert p.carry_over["ns"] / (p.carry_over["ns"] + p.busy_ns) == pytest.approx(0.301, abs=5e-4)
    (line,) = measured.outside_steps(p)[:-1]  # said once; the last one is the host's lead
    assert line.startswith("carry-over: 509 events")
    assert not [note for note in p.notes if "509" in note]


def test_coverage_of_a_decoder(h100: Analysis) -> None:
    coverage = phase(h100).coverage
    assert coverage["kind"] >= 0.99
    assert coverage["gemm_work"] >= 0.95
    assert coverage["role"] >= 0.99


def test_every_linear_has_its_role_and_group(h100: Analysis) -> None:
    groups = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up",
              "down": "down"}  # fmt: skip
    for role, group in groups.items():
        (row,) = (g for g in phase(h100).gemms if g.role == role)
        assert (row.group, row.layers, row.count) == (group, list(range(24)), 24)
        assert row.axis is None  # no baseline, no axis
        assert (row.dense_m, row.keep) == (None, None)


def test_ideal_and_helpers(h100: Analysis) -> None:
    """down: 2·8944·1024·2816 FLOP at 989 TFLOP/s is 52.2 us, against 21.2 us of bytes."""
    (row,) = (g for g in phase(h100).gemms if g.role == "down")
    device = find_device("h100-sxm")
    assert row.bytes == 2 * (8944 * 2816 + 2816 * 1024 + 8944 * 1024)
    compute = 2 * 8944 * 1024 * 2816 / device.dense_flop_per_s["bf16"] * 1e9
    assert row.ideal_ns == pytest.approx(24 * compute)
    assert (row.bound, row.auxiliary_ns > 0) == ("compute", True)
    assert row.efficiency == pytest.approx(row.ideal_ns / row.busy_ns)
    frame = h100.frames["trace"].filter(pl.col("role") == "down")
    assert row.busy_ns == frame["busy"].sum()
    assert row.auxiliary_ns == frame.filter(pl.col("kind") == "memset")["busy"].sum()


def test_frame_sums_are_the_report(h100: Analysis) -> None:
    p, frame = phase(h100), h100.frames["trace"]
    assert sum(p.kinds.values()) == p.busy_ns == frame["busy"].sum()
    assert sum(p.roles.values()) == p.busy_ns
    bounds = sum(p.bound[b] for b in ("compute", "memory", "latency", "unknown"))
    assert bounds == p.busy_ns
    assert p.bound["launch"] <= p.gap_ns


def call(gemm: Gemm | None, *, role: str = "up", busy: float = 100.0, kind: str = "gemm",
         layer: int = 0, op: str = "aten::mm", group: str = "gate_up") -> Call:  # fmt: skip
    dims = (gemm.batch, gemm.m, gemm.n, gemm.k) if gemm else (None,) * 4
    return Call(
        layer, role, group, op, kind, "bf16", *dims, count=1.0,
        flop=gemm.flop if gemm else None, bytes=None, busy=busy, auxiliary=0.0, ideal=None,
        bound="unknown", kernel="k", split=False,
    )  # fmt: skip


def axis(dense: Call | None, pruned: Call | None) -> str:
    key = (0, "up", "gate_up", 0)
    pairs = pair_calls({key: dense} if dense else {}, {key: pruned} if pruned else {})
    return pairs[0].axis


OLD = Gemm(64, 128, 96, 2)


@pytest.mark.parametrize(
    ("new", "want"),
    [
        (OLD, "none"), (Gemm(32, 128, 96, 2), "M"), (Gemm(64, 64, 96, 2), "N"),
        (Gemm(64, 128, 48, 2), "K"), (Gemm(64, 64, 48, 2), "NK"), (Gemm(64, 128, 96, 1), "heads"),
        (Gemm(32, 64, 96, 2), "unknown"), (Gemm(64, 64, 96, 1), "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_the_axis_that_moved(new: Gemm | None, want: str) -> None:
    assert axis(call(OLD), call(new)) == want


def test_axes_without_a_partner() -> None:
    assert axis(call(OLD), None) == "gone"
    assert axis(None, call(OLD)) == "added"


def test_a_sparse_gemm_and_its_reverse() -> None:
    assert axis(call(OLD), call(OLD, kind="sparse_gemm")) == "2:4"
    assert axis(call(OLD, kind="sparse_gemm"), call(OLD, kind="sparse_gemm")) == "none"
    assert axis(call(OLD, kind="sparse_gemm"), call(OLD)) == "unknown"


def test_a_rank_is_one_pair_in_two_rows() -> None:
    """[64, 96] → [64, 16] → [64, 128]: both share the dense GEMM's time by K : N = 96 : 128."""
    dense = {(0, "up", "gate_up", 0): call(Gemm(64, 128, 96), busy=224.0)}
    pruned = {
        (0, "up", "gate_up", 0): call(Gemm(64, 16, 96), busy=30.0),
        (0, "up", "gate_up", 1): call(Gemm(64, 128, 16), busy=40.0),
    }
    pairs = pair_calls(dense, pruned)
    assert [p.axis for p in pairs] == ["rank", "rank"]
    first, second = build_gemm_rows(pairs, promised=0.5, exact_layers=True)
    by_n = {r.n: r for r in (first, second)}
    assert (by_n[16].dense_busy_ns, by_n[128].dense_busy_ns) == (96.0, 128.0)
    assert by_n[16].loss_ns == 30.0 - 0.5 * 96.0
    assert (by_n[16].dense_n, by_n[16].dense_k) == (128, 96)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Gemm(64, 16, 96), Gemm(64, 128, 32)),  # the inner dimensions differ
        (Gemm(64, 16, 90), Gemm(64, 128, 16)),  # another K
        (Gemm(64, 128, 96), Gemm(64, 128, 128)),  # no smaller rank: a map behind the dense GEMM
    ],
)
def test_two_gemms_that_are_no_rank(a: Gemm, b: Gemm) -> None:
    keys = [(0, "up", "gate_up", 0), (0, "up", "gate_up", 1)]
    pairs = pair_calls(
        {keys[0]: call(Gemm(64, 128, 96))}, dict(zip(keys, (call(a), call(b)), strict=True))
    )
    assert "rank" not in [p.axis for p in pairs]
    assert pairs[1].axis == "added"


IN, OUT, UP, DOWN = (Gemm(64, n, k) for n, k in ((384, 128), (128, 160), (512, 128), (128, 512)))
HEAD = Gemm(8, 10, 128)


@pytest.mark.parametrize(
    ("dense", "pruned", "axes"),
    [
        # a layer of two is gone: the head is no projection of the second one
        ([IN, OUT, UP, DOWN] * 2 + [HEAD], [IN, OUT, UP, DOWN, HEAD], ["none"] * 5 + ["gone"] * 4),
        # the same, and `up` of what is left is narrower
        ([IN, OUT, UP, DOWN] * 2 + [HEAD], [IN, OUT, Gemm(64, 500, 128), DOWN, HEAD],
         ["none", "none", "N", "none", "none"] + ["gone"] * 4),
        # as many, in another order
        ([IN, OUT, DOWN], [OUT, IN, DOWN], ["none", "added", "none", "gone"]),
        # every one is narrower, in as many places
        ([IN, DOWN], [Gemm(64, 192, 64), Gemm(64, 64, 256)], ["NK", "NK"]),
        # nothing in common, and not as many
        ([IN], [Gemm(64, 10, 20), Gemm(64, 30, 40)], ["added", "added", "gone"]),
    ],
)  # fmt: skip
def test_gemms_without_a_role_pair_by_order_and_size(
    dense: list[Gemm], pruned: list[Gemm], axes: list[str]
) -> None:
    sides = [
        {(None, "unknown", "other", i): call(gemm) for i, gemm in enumerate(side)}
        for side in (dense, pruned)
    ]
    pairs = pair_calls(*sides)
    assert sorted(p.axis for p in pairs) == sorted(axes)
    for gemm_pair in pairs:
        if gemm_pair.axis == "none":
            assert gemm_pair.dense is not None and gemm_pair.pruned is not None
            assert gemm_pair.dense.gemm == gemm_pair.pruned.gemm


def test_rows_gather_layers_of_one_make() -> None:
    def keyed(n: int, layers: range) -> dict[tuple[int | None, str, str, int], Call]:
        return {(i, "up", "gate_up", 0): call(Gemm(64, n, 96), layer=i) for i in layers}

    pruned = {**keyed(64, range(3)), **keyed(128, range(3, 5))}
    rows = build_gemm_rows(
        pair_calls(keyed(128, range(6)), pruned), promised=0.5, exact_layers=True
    )
    told = {(r.axis, r.n): (r.layers, r.count, r.busy_ns, r.dense_busy_ns) for r in rows}
    assert told == {
        ("N", 64): ([0, 1, 2], 3, 300.0, 300.0), ("none", 128): ([3, 4], 2, 200.0, 200.0),
        ("gone", 128): ([5], 0, 0.0, 100.0),
    }  # fmt: skip
    gone = next(r for r in rows if r.axis == "gone")
    assert (gone.keep, gone.loss_ns, gone.bound) == ({"calls": 0.0}, -50.0, None)
    narrow = next(r for r in rows if r.axis == "N")
    assert narrow.keep == {"n": 0.5}


def test_removed_layers_are_not_listed_where_indices_say_nothing() -> None:
    dense = {(i, "up", "gate_up", 0): call(OLD, layer=i) for i in range(2)}
    rows = build_gemm_rows(
        pair_calls(dense, {(0, "up", "gate_up", 0): call(OLD)}), promised=None, exact_layers=False
    )
    gone: Row = next(r for r in rows if r.axis == "gone")
    assert (gone.layers, gone.loss_ns) == ([], None)


@pytest.mark.parametrize("name", ["b200_eager.json.gz",
                                  "mi300x_sglang_qwen3-8b_prefilldecode.json.gz",
                                  "h100_vit.json.gz", "mi210_gpu_only.json.gz"])  # fmt: skip
def test_other_traces_close(name: str, real_report: Callable[[str], Report]) -> None:
    p = real_report(name).phases["trace"]
    assert p.wall_ns == pytest.approx(p.busy_ns + p.gap_ns + p.tail_ns, abs=1e-3)
    assert sum(p.kinds.values()) == pytest.approx(p.busy_ns)
    bounds = sum(p.bound[b] for b in ("compute", "memory", "latency", "unknown"))
    assert bounds == pytest.approx(p.busy_ns)
    assert p.coverage["kind"] > 0.95
    table_busy = sum(g.busy_ns for g in p.gemms)
    assert table_busy <= p.busy_ns * (1 + 1e-9)
