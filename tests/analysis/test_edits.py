"""Edits of a real trace with known truth: each lands in its ledger row, to the nanosecond.

Every edit is read in both orders, (dense, edited) and (edited, dense). Truth is summed here, from
the events, by the formulas of docs/ledger.md; rows that are not named must be zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.report.measured import outside_steps
from prunescope.analysis.schema.report import Phase
from tests.analysis.edit_case import (
    BETA,
    HAVE_F,
    LAYERS,
    NO_PRUNING,
    PI,
    REST,
    SMS,
    WHOLE,
    Case,
    F,
    H,
    T,
    check,
    family,
    has_f,
    idle,
    matmul,
)
from tests.analysis.edits import Change, Edit, Event, replaced


@pytest.fixture
def case(real_trace: Callable[[str], Path], tmp_path: Path) -> Case:
    return Case(real_trace("h100_qwen1.5-0.5b_prefill.json.gz"), tmp_path)


def down(edit: Edit) -> list[Event]:
    """Device events of down_proj, the last Linear of every MLP."""
    mlps = edit.modules("Qwen2MLP")
    linears = edit.modules("Linear")
    last = [[x for x in linears if m["ts"] <= x["ts"] < m["ts"] + m["dur"]][-1] for m in mlps]
    return edit.inside(last)


def test_dense_against_itself(case: Case) -> None:
    for phase in case.reports():
        check(phase, case.dense, case.dense, 1.0)
        assert family(phase) == "unknown"  # zeros in weights are in no trace
        assert phase.ladder is not None
        assert phase.ladder.realised == 1


def loss(n: int) -> float:
    """Ideal over tiles of 128x128 in whole waves of 132: ⌈tiles/132⌉·132·128²/(M·N)."""
    tiles = -(-T // 128) * -(-n // 128)
    return -(-tiles // SMS) * SMS * 128 * 128 / (T * n)


def test_mlp_narrowed(case: Case) -> None:
    """f 2816 → 2112 and those kernels 0.85 of their time: 0.75 was promised, 0.10 is lost."""
    changes = case.edit.resize(lambda e: has_f(case.edit, e), lambda e: round(e["dur"] * 0.85))
    case.edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), F, 2112)
                      if op["name"] in HAVE_F else None)  # fmt: skip
    there, back = case.reports(0.25)
    old, new = sum(c.before for c in changes), sum(c.after for c in changes)
    rest, gap = case.dense.busy() - old, idle(case.dense)
    # Only gate and up have f along N, so their tiles change; down has it along K.
    wide = [c for c in changes if c.op and c.op["name"] == "aten::mm" and _dims(c)[1][1] == 2112]
    assert len(wide) == 2 * 2 * LAYERS  # a kernel and a memset each
    more = loss(2112) / loss(F) - 1
    shape = 0.75 * more * sum(c.before for c in wide)
    check(there, case.dense, case.edit, 0.75, coverage=0.25 * (rest + gap), shape=shape,
          kernel_efficiency=new - 0.75 * old - shape)  # fmt: skip
    assert family(there) == "static-nk-mlp"
    p = WHOLE / (REST + LAYERS * 3 * 2 * T * 2112 * H)
    shape = 4 / 3 * (loss(F) / loss(2112) - 1) * sum(c.after for c in wide)
    check(back, case.edit, case.dense, p, coverage=new * (4 / 3 - p) + (rest + gap) * (1 - p),
          shape=shape, kernel_efficiency=old - 4 / 3 * new - shape)  # fmt: skip
    assert family(back) in NO_PRUNING


def _dims(change: Change) -> list[list[int]]:
    assert change.op is not None
    dims: list[list[int]] = change.op["args"]["Input Dims"]
    return dims


def test_down_stretched(case: Case) -> None:
    """30 % more time in down: kernel efficiency, there and back, and no family."""
    ids = {id(e) for e in down(case.edit)}
    changes = case.edit.resize(lambda e: id(e) in ids, lambda e: round(e["dur"] * 1.3))
    assert len(changes) == 2 * LAYERS
    extra = sum(c.after - c.before for c in changes)
    there, back = case.reports()
    check(there, case.dense, case.edit, 1.0, kernel_efficiency=extra)
    check(back, case.edit, case.dense, 1.0, kernel_efficiency=-extra)
    part = next(r for r in there.ledger or [] if r.row == "kernel_efficiency").parts
    assert [(p.role, p.cls) for p in part] == [("down", "matmul")]
    assert (family(there), family(back)) == ("unknown", "unknown")


SPARSE = ("sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_stage3_"
          "sptensor16x8x32_kernel")  # fmt: skip


def to_sparse(op: Event) -> None:
    """aten::mm [M, K] x [K, N] as torch runs it in 2:4: compressed weight, [K, M]."""
    (m, k), (_, n) = op["args"]["Input Dims"]
    kind = op["args"]["Input type"][0]
    op["name"] = "aten::_cslt_sparse_mm"
    op["args"]["Input Dims"] = [[n * k * 9 // 16], [k, m], [], [], [], [], [], [], []]
    op["args"]["Input type"] = [kind, kind, "", "", "", "Scalar", "Scalar", "Scalar", "Scalar"]
    for key in ("Input Strides", "Concrete Inputs"):
        op["args"].pop(key, None)


def test_sparse_without_gain(case: Case) -> None:
    """The MLP's GEMMs become 2:4 and take as long: half was promised, all of it is lost."""
    events = [e for e in case.edit.device if matmul(case.edit, e)]
    ops = {id(op): op for e in events if (op := case.edit.op_of(e)) is not None}
    for event in events:
        event["name"] = SPARSE if event["cat"] == "kernel" else event["name"]
    for op in ops.values():
        to_sparse(op)
    assert len(ops) == 3 * LAYERS
    there, back = case.reports(0.5)
    sparse, gap = case.edit.busy(events), idle(case.dense)
    rest = case.dense.busy() - sparse
    # Compute-bound also as 2:4: T·f·h/π = 26.1 us against 21.5 us of bytes, so no roofline shift.
    assert T * F * H / PI > 2 * (T * H + F * H * 9 / 16 + T * F) / BETA
    same = {"coverage": 0.5 * (rest + gap)}
    _check_sum(there, case, 0.5, same, 0.5 * sparse)
    assert family(there) == "static-k-24"
    # 2:4 has one sparsity: recognised, it is what was promised.
    named = case.reports(None)[0]
    assert named.sparsity["nominal"] == 0.5 and named.ladder is not None
    assert named.ladder.nominal == 2.0
    p = WHOLE / (REST + LAYERS * 3 * T * F * H)
    rows = {r.row: r.ns for r in back.ledger or []}
    assert rows["coverage"] == pytest.approx(sparse * (2 - p) + (rest + gap) * (1 - p), abs=1e-2)
    assert rows["shape"] + rows["kernel_efficiency"] == pytest.approx(-sparse, abs=1e-2)
    assert family(back) in NO_PRUNING


def _check_sum(phase: Phase, case: Case, p: float, want: dict[str, float], lost: float) -> None:
    """Where the tile of a kernel is made up: shape and efficiency together."""
    rows = {r.row: r.ns for r in phase.ledger or []}
    assert rows["shape"] + rows["kernel_efficiency"] == pytest.approx(lost, abs=1e-2)
    told = {"shape": rows["shape"], "kernel_efficiency": rows["kernel_efficiency"]}
    check(phase, case.dense, case.edit, p, **want, **told)


def test_gathers_inserted(case: Case) -> None:
    """A kernel of 12 us behind every 20th, 5 us of idle time before each."""
    kernels = [e for e in case.edit.device if e["cat"] == "kernel"][20::20]
    case.edit.insert(
        kernels, ns=12_000, gap=5_000, op="aten::index_select", dims=[[T, H], [], [T // 2]],
        types=["c10::BFloat16", "Scalar", "long int"],
        kernel="void at::native::indexSelectLargeIndex<c10::BFloat16, long>",
    )  # fmt: skip
    there, back = case.reports()
    busy, gap = 12_000 * len(kernels), 5_000 * len(kernels)
    assert case.edit.wall() == case.dense.wall() + busy + gap
    check(there, case.dense, case.edit, 1.0, added_work=busy, launch_idle=gap)
    part = next(r for r in there.ledger or [] if r.row == "added_work").parts
    assert {p.cls for p in part} == {"gather_scatter"}
    # The other way round they are removed units, which promise nothing: r_F = 0 and p = 1.
    check(back, case.edit, case.dense, 1.0, coverage=-(busy + gap))
    assert family(there) in NO_PRUNING
    assert family(back) in NO_PRUNING


def test_gaps_widened(case: Case) -> None:
    kernels = [e for e in case.edit.device if e["cat"] == "kernel"][17::17]
    more = case.edit.widen(kernels, 25_000)
    there, back = case.reports()
    check(there, case.dense, case.edit, 1.0, launch_idle=more)
    check(back, case.edit, case.dense, 1.0, launch_idle=-more)
    assert (family(there), family(back)) == ("unknown", "unknown")
    assert there.gap_ns - back.gap_ns == more


def test_host_late(case: Case) -> None:
    """The host 4 ms later from layer 12 on: the same gaps, but they wait for their launch."""
    at = case.edit.modules("Qwen2DecoderLayer_")[12]["ts"]
    for event in case.edit.events:
        if event.get("cat") in (*("kernel", "gpu_memcpy", "gpu_memset"), None):
            continue
        if event["ts"] >= at:
            event["ts"] += 4_000_000
        elif event["ts"] + event["dur"] > at:
            event["dur"] += 4_000_000
    there, back = case.reports()
    check(there, case.dense, case.edit, 1.0)
    check(back, case.edit, case.dense, 1.0)
    for phase, edit in ((there, case.edit), (back, case.dense)):
        assert phase.bound["launch"] == waited(edit)
        assert phase.bound["launch"] <= phase.gap_ns
    assert there.bound["launch"] > 1.5 * back.bound["launch"]


def waited(edit: Edit) -> int:
    """Gaps whose launch call had not ended when the device had run out of work."""
    total, end = 0, edit.device[0]["ts"]
    for event in edit.device:
        launch = edit.launch_of(event)
        until = None if launch is None else launch["ts"] + launch["dur"]
        if until is not None and event["ts"] > end and until >= end:
            total += event["ts"] - end
        end = max(end, event["ts"] + event["dur"])
    return total


def test_roofline_shift(case: Case) -> None:
    """256 rows in both, f halved in one: FLOPs halve, bytes do not, times follow the roofline."""
    rows = 256
    case.dense = Edit(case.path)
    for edit in (case.dense, case.edit):
        for event in edit.device:
            if matmul(edit, event) and event["cat"] == "kernel":
                event["name"] = "a_gemm_kernel"  # no tile in the name: J = I
        edit.reshape(
            lambda op: (
                replaced(op["args"]["Input Dims"], T, rows)
                if op["name"] == "aten::mm" and str(F) in str(op["args"]["Input Dims"])
                else None
            )
        )

    def ideal(op: Event, f: int) -> float:
        (m, k), (_, n) = replaced(op["args"]["Input Dims"], F, f)
        return max(2 * m * n * k / PI, 2 * (m * k + k * n + m * n) / BETA)

    def ratio(op: Event | None) -> float:
        assert op is not None
        return ideal(op, 1408) / ideal(op, F)

    changes = case.edit.resize(
        lambda e: matmul(case.edit, e), lambda e: round(e["dur"] * ratio(case.edit.op_of(e)))
    )
    ratios = [ratio(c.op) for c in changes]
    assert all(0.5 < r < 0.6 for r in ratios)
    case.edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), F, 1408)
                      if op["name"] == "aten::mm" else None)  # fmt: skip
    there, back = case.reports()
    old, new = [c.before for c in changes], [c.after for c in changes]
    rest, gap = case.dense.busy() - sum(old), idle(case.dense)
    flop = LAYERS * 3 * 2 * rows * F * H
    p = (REST + flop / 2) / (REST + flop)
    check(
        there, case.dense, case.edit, p,
        coverage=sum(old) * (0.5 - p) + (rest + gap) * (1 - p),
        roofline_shift=sum(t * (r - 0.5) for t, r in zip(old, ratios, strict=True)),
        kernel_efficiency=sum(b - a * r for a, b, r in zip(old, new, ratios, strict=True)),
    )  # fmt: skip
    p = 1 / p
    check(
        back, case.edit, case.dense, p,
        coverage=sum(new) * (2 - p) + (rest + gap) * (1 - p),
        roofline_shift=sum(t * (1 / r - 2) for t, r in zip(new, ratios, strict=True)),
        kernel_efficiency=sum(a - b / r for a, b, r in zip(old, new, ratios, strict=True)),
    )  # fmt: skip
    assert there.ladder is not None
    assert there.ladder.flop == pytest.approx(p)
    assert family(there) == "static-nk-mlp"


def test_late_and_spill_are_named_and_left_out(case: Case) -> None:
    """Device events without a launch behind the last linked one, and more before the first."""
    last = case.edit.device[-1]
    end = last["ts"] + last["dur"]
    first = case.edit.device[0]["ts"]
    for i in range(3):
        args = {**last["args"], "correlation": 5 * 10**8 + i}
        late = {**last, "ts": end + 1000 * i + 500, "dur": 400, "args": args}
        early = {
            **late,
            "ts": first - 10**8 + 1000 * i,
            "args": {**args, "correlation": 6 * 10**8 + i},
        }
        case.edit.events += [late, early]
    there, back = case.reports()
    check(there, case.dense, case.edit, 1.0)
    check(back, case.edit, case.dense, 1.0)
    assert there.late == {"events": 3, "ns": 1200}
    assert back.late == {"events": 0, "ns": 0}
    assert there.carry_over["events"] - back.carry_over["events"] == 3
    assert there.carry_over["ns"] - back.carry_over["ns"] == 1200
    assert any(line.startswith("unlinked at the end: 3 events") for line in outside_steps(there))
