"""Edits of a real trace with known truth: each lands in its ledger row, to the nanosecond.

A step of Qwen1.5-0.5B on an H100: 24 layers, T = 16 · 559 rows, h = q = 1024, f = 2816, bf16. Every
edit is read in both orders, (dense, edited) and (edited, dense). Truth is summed here, from the
events, by the formulas of DESIGN section 5; rows that are not named must be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from analysis.pipeline import Options, analyze
from analysis.report.model import Phase
from tests.analysis.edits import Change, Edit, Event, replaced

ROWS = ("coverage", "roofline_shift", "shape", "kernel_efficiency", "added_work", "launch_idle")
NO_PRUNING = ("dense", "outside", "unknown")
T, H, F, LAYERS = 16 * 559, 1024, 2816, 24
PI, BETA, SMS = 989e3, 3350.0, 132  # FLOP/ns in bf16, B/ns, multiprocessors of an H100 SXM
# 2·B·q·S(S+1) of a causal attention, and the one product of the rotary table [32, 1] x [1, 559].
ATTENTION, ROTARY = 2 * 16 * 1024 * 559 * 560, 2 * 32 * 559
REST = LAYERS * (4 * 2 * T * H * H + ATTENTION) + ROTARY
WHOLE = REST + LAYERS * 3 * 2 * T * F * H
HAVE_F = ("aten::mm", "aten::silu", "aten::mul")


class Case:
    """The whole trace (`dense`), an edit of it, and reports of the two in either order."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.dense, self.edit = Edit(path), Edit(path)

    def reports(self, sparsity: float | None = None) -> tuple[Phase, Phase]:
        dense, edited = (
            e.save(self.folder / f"{n}.json") for n, e in (("d", self.dense), ("e", self.edit))
        )
        there = analyze(edited, baseline=dense, options=Options(sparsity=sparsity))
        back = analyze(dense, baseline=edited)
        return there.report.phases["trace"], back.report.phases["trace"]


@pytest.fixture
def case(real_trace: Callable[[str], Path], tmp_path: Path) -> Case:
    return Case(real_trace("h100_qwen1.5-0.5b_prefill.json.gz"), tmp_path)


def check(phase: Phase, dense: Edit, pruned: Edit, promised: float, **want: float) -> None:
    """The walls, p, the rows named in `want` (ns), all others zero, and the ladder they give."""
    rows = {r.row: r.ns for r in phase.ledger or []}
    walls = (dense.wall(), pruned.wall())
    assert (rows["dense"], rows["pruned"]) == pytest.approx(walls, abs=1e-3)
    assert rows["promised"] == pytest.approx(promised * dense.wall(), abs=1e-3)
    for name in ROWS:
        assert rows[name] == pytest.approx(want.get(name, 0.0), abs=1e-2), name
    for row in phase.ledger or []:
        if row.parts:
            assert sum(p.ns for p in row.parts) == pytest.approx(row.ns, abs=1e-2)
    ladder = phase.ladder
    assert ladder is not None
    covered = promised * walls[0] + want.get("coverage", 0.0)
    bound = covered + want.get("roofline_shift", 0.0)
    assert ladder.coverage == pytest.approx(walls[0] / covered)
    assert ladder.roofline == pytest.approx(walls[0] / bound)
    assert ladder.busy == pytest.approx(dense.busy() / pruned.busy())
    assert ladder.realised == pytest.approx(walls[0] / walls[1])
    assert ladder.share_of_bound == pytest.approx(bound / walls[1])


def family(phase: Phase) -> str:
    assert phase.family is not None
    assert phase.family.evidence
    return phase.family.id


def idle(edit: Edit, events: Iterable[Event] | None = None) -> int:
    gaps = edit.gaps()
    return sum(gaps.values()) if events is None else sum(gaps[id(e)] for e in events)


def has_f(edit: Edit, event: Event) -> bool:
    """Whether the op of a device event has the MLP's width among its dimensions."""
    op = edit.op_of(event)
    return op is not None and op["name"] in HAVE_F and str(F) in str(op["args"]["Input Dims"])


def matmul(edit: Edit, event: Event) -> bool:
    op = edit.op_of(event)
    return op is not None and op["name"] == "aten::mm" and has_f(edit, event)


def down(edit: Edit) -> list[Event]:
    """Device events of down_proj, the last Linear of every MLP."""
    mlps = edit.modules("Qwen2MLP")
    linears = edit.modules("Linear")
    last = [[x for x in linears if m["ts"] <= x["ts"] < m["ts"] + m["dur"]][-1] for m in mlps]
    return edit.inside(last)


def test_dense_against_itself(case: Case) -> None:
    for phase in case.reports():
        check(phase, case.dense, case.dense, 1.0)
        assert family(phase) == "dense"
        assert phase.ladder is not None
        assert phase.ladder.realised == 1


def test_layers_dropped(case: Case) -> None:
    """6 of 24 layers: p·T + coverage = what is left; the other way round all of it is added."""
    which = [3, 7, 11, 15, 19, 22]
    gone = Edit(case.path)
    events = gone.inside([gone.modules("Qwen2DecoderLayer_")[i] for i in which])
    busy, gap = gone.busy(events), idle(gone, events)
    case.edit.drop_layers(which)
    assert case.edit.wall() == case.dense.wall() - busy - gap
    there, back = case.reports(0.25)
    # Kept units: (t + g)(1 - p); removed ones: -(t + g)·p.
    kept = case.dense.wall() - busy - gap
    check(there, case.dense, case.edit, 0.75, coverage=0.25 * kept - 0.75 * (busy + gap))
    assert family(there) == "static-m"
    assert there.family is not None
    assert there.family.evidence == ["6 of 24 layers gone: 3, 7, 11, 15, 19, 22"]
    assert there.pairing is not None
    assert there.pairing.layers == "6 of 24 layers removed"
    check(back, case.edit, case.dense, 1.0, added_work=busy, launch_idle=gap)
    assert family(back) in NO_PRUNING


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
    assert (family(there), family(back)) == ("dense", "dense")


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
    assert (family(there), family(back)) == ("dense", "dense")
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
    """Gaps whose launch began when the device had run dry."""
    total, end = 0, edit.device[0]["ts"]
    for event in edit.device:
        launch = edit.launch_of(event)
        if launch is not None and event["ts"] > end and launch["ts"] >= end:
            total += event["ts"] - end
        end = max(end, event["ts"] + event["dur"])
    return total


def test_roofline_shift(case: Case) -> None:
    """256 rows in both, f halved in one: FLOPs halve, bytes do not, times follow the roofline."""
    rows = 256
    for edit in (case.dense, case.edit):
        for event in edit.device:
            if matmul(edit, event) and event["cat"] == "kernel":
                event["name"] = "a_gemm_kernel"  # no tile in the name: J = I
        edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), T, rows)
                     if op["name"] == "aten::mm" and str(F) in str(op["args"]["Input Dims"]) else None)  # fmt: skip

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
        early = {**late, "ts": first - 10**8 + 1000 * i, "args": {**args, "correlation": 6 * 10**8 + i}}
        case.edit.events += [late, early]
    there, back = case.reports()
    check(there, case.dense, case.edit, 1.0)
    check(back, case.edit, case.dense, 1.0)
    assert there.late == {"events": 3, "ns": 1200}
    assert back.late == {"events": 0, "ns": 0}
    assert there.spill["events"] - back.spill["events"] == 3
    assert there.spill["ns"] - back.spill["ns"] == 1200
    assert any("3 device events" in note for note in there.notes)


def test_layers_renumbered(case: Case) -> None:
    """Numbered anew, equal layers cannot be told apart: the count is known, the indices are not."""
    which = [3, 7, 11, 15, 19, 22]
    case.edit.drop_layers(which)
    case.edit.renumber()
    there, _ = case.reports(0.25)
    rows = {r.row: r.ns for r in there.ledger or []}
    assert (rows["dense"], rows["pruned"]) == pytest.approx((case.dense.wall(), case.edit.wall()))
    assert rows["promised"] == pytest.approx(0.75 * case.dense.wall())
    assert rows["added_work"] == 0
    assert rows["roofline_shift"] == pytest.approx(0, abs=1e-2)
    # Layers differ by some us: what is removed and what is slower can only be told in sum.
    tolerance = 0.01 * case.dense.wall()
    assert rows["promised"] + rows["coverage"] == pytest.approx(case.edit.wall(), abs=tolerance)
    assert family(there) == "static-m"
    assert there.family is not None
    assert there.family.evidence == ["6 of 24 layers gone"]
    assert all(g.layers == [] for g in there.gemms if g.axis == "gone")


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("what", ["layers", "width", "nothing"])
def test_without_modules(what: str, case: Case, *, renumber: bool) -> None:
    """Roles by order: the family is still named, or it is unknown; never another one."""
    truth = {"layers": "static-m", "width": "static-nk-mlp", "nothing": "dense"}[what]
    if what == "layers":
        case.edit.drop_layers([3, 7, 11, 15, 19, 22])
    elif what == "width":
        case.edit.resize(lambda e: has_f(case.edit, e), lambda e: round(e["dur"] * 0.85))
        case.edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), F, 2112)
                          if op["name"] in HAVE_F else None)  # fmt: skip
    if renumber:
        case.edit.renumber()
    else:
        case.dense.strip_modules()
        case.edit.strip_modules()
    there, back = case.reports(0.25)
    assert family(there) in (truth, "unknown")
    assert family(back) in NO_PRUNING
    rows = {r.row: r.ns for r in there.ledger or []}
    assert rows["pruned"] == pytest.approx(case.edit.wall())
    if not renumber:
        assert any("order" in note for note in there.notes)
