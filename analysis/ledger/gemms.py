"""The GEMM table: every GEMM with its group, its dense partner, the axis that moved and the loss.

In: the `Call`s of one or both sides. Out: `Pair`s (one a logical GEMM of a unit, means a step) and
the rows of the report.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from prunescope.analysis.ledger.calls import Call, Key
from prunescope.analysis.schema.report import GemmRow as Row
from prunescope.analysis.schema.report import clock
from prunescope.taxonomy.gemm import Gemm, axis_moved

_ALL_CALLS = 0.99  # of the dense calls


@dataclass(frozen=True)
class Pair:
    """A dense GEMM and the pruned one that replaces it; either is None. `axis` as in AXES."""

    key: Key
    dense: Call | None
    pruned: Call | None
    axis: str


def pair_calls(dense: dict[Key, Call], pruned: dict[Key, Call]) -> list[Pair]:
    """Dense and pruned GEMMs by key. Two GEMMs through a rank pair with the one they replace."""
    pairs = []
    by_unit: dict[tuple[object, ...], list[Key]] = defaultdict(list)
    for key in pruned:
        by_unit[key[:3]].append(key)
    for unit, keys in by_unit.items():
        originals = [k for k in dense if k[:3] == unit]
        low_rank = _through_a_rank([pruned[k] for k in keys], [dense[k] for k in originals])
        for key in keys:
            partner = dense.get((*key[:3], 0)) if low_rank else dense.get(key)
            axis = "rank" if low_rank else _axis(partner, pruned[key])
            pairs.append(Pair(key, partner, pruned[key], axis))
    pairs += [Pair(k, call, None, "gone") for k, call in dense.items() if k not in pruned]
    return pairs


def _through_a_rank(pruned: list[Call], dense: list[Call]) -> bool:
    """[T,K]→[T,r]→[T,N]: the first one's K and the second one's N are those of the dense GEMM."""
    if len(dense) != 1 or len(pruned) != 2 or dense[0].group in ("qk", "pv"):
        return False
    a, b, old = pruned[0].gemm, pruned[1].gemm, dense[0].gemm
    if a is None or b is None or old is None:
        return False
    return a.n == b.k and a.n < min(old.n, old.k) and a.k == old.k and b.n == old.n


def _axis(dense: Call | None, pruned: Call) -> str:
    if dense is None:
        return "added"
    if pruned.kind == "sparse_gemm" and dense.kind != "sparse_gemm":
        return "2:4"
    if dense.kind == "sparse_gemm" and pruned.kind != "sparse_gemm":
        return "unknown"  # a sparse GEMM became dense: no pruning does that
    old, new = dense.gemm, pruned.gemm
    if old is None or new is None:
        if (moved := _moved_width(dense, pruned)) is not None:
            return moved
        return "unknown" if dense.gemm != pruned.gemm or dense.op != pruned.op else "none"
    return "none" if _left_out(dense, pruned) else axis_moved(old, new)


def _left_out(dense: Call, pruned: Call) -> bool:
    """Whether the pruned side makes fewer of the dense calls, each of a size that some of these
    have: a step that is left out of a decode moves the mean of its keys."""
    if not dense.spans or not pruned.spans or pruned.count >= _ALL_CALLS * dense.count:
        return False
    pairs = zip(dense.spans, pruned.spans, strict=True)
    return all(low <= least and most <= high for (low, high), (least, most) in pairs)


def _axis_shown(pair: Pair) -> str | None:
    """The axis in a report: unknown where neither side says its sizes, not that none moved."""
    calls = [call for call in (pair.dense, pair.pruned) if call is not None]
    unread = all(call.m is None and call.n is None and call.k is None for call in calls)
    return "unknown" if unread and pair.axis == "none" else pair.axis or None


def _moved_width(dense: Call, pruned: Call) -> str | None:
    """The axis of two GEMMs whose M is not known on a side: N or K or both where these moved, else
    unknown, for M may have; None where N and K are not known either."""
    if dense.n is None or dense.k is None or pruned.n is None or pruned.k is None:
        return None
    widths = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*widths)
    return "unknown" if moved == "none" else moved


def report_rows(pairs: list[Pair], *, promised: float, exact_layers: bool) -> list[Row]:
    """Rows of the report: pairs of one make (role, op, shapes, axis) over all layers."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        call = pair.pruned or pair.dense
        assert call is not None
        if _is_attention_of_unknown_shape(call):
            continue
        lacks = pair.pruned is None
        groups[_make(call), _dims(pair.dense), pair.axis, lacks].append(pair)
    rows = [
        _row(members, promised=promised, exact_layers=exact_layers) for members in groups.values()
    ]
    return sorted(rows, key=lambda r: (-(r.dense_busy_ns or r.busy_ns), r.role))


def single_rows(calls: dict[Key, Call]) -> list[Row]:
    """Rows without a baseline: group and letters only, no axis."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for key, call in calls.items():
        if not _is_attention_of_unknown_shape(call):
            groups[_make(call)].append(Pair(key, None, call, ""))
    rows = [_row(members, promised=None, exact_layers=True) for members in groups.values()]
    return sorted(rows, key=lambda r: -r.busy_ns)


def _is_attention_of_unknown_shape(call: Call) -> bool:
    """A fused kernel whose GEMMs nobody knows is no row of their table."""
    return call.kind == "attention" and call.gemm is None


def _make(call: Call) -> tuple[object, ...]:
    return (call.role, call.group, call.op, call.kind, call.dtype, call.shapes, *_dims(call))


def _dims(call: Call | None) -> tuple[float | None, ...]:
    return (None,) * 4 if call is None else (call.batch, call.m, call.n, call.k)


def _row(members: list[Pair], *, promised: float | None, exact_layers: bool) -> Row:
    gone = members[0].pruned is None
    calls = [p.pruned or p.dense for p in members]
    shown = [c for c in calls if c is not None]
    first, dense = shown[0], members[0].dense
    busy = 0.0 if gone else sum(c.busy for c in shown)
    ideals = [c.ideal for c in shown]
    ideal = None if gone or None in ideals else sum(i for i in ideals if i is not None)
    took = 0.0 if gone else sum(c.duration for c in shown)
    known = clock(busy, took)
    dense_busy = _dense_busy(members)
    wanted = None if promised is None or dense_busy is None else promised * dense_busy
    layers = sorted({c.layer for c in shown if c.layer is not None})
    calls_left = _calls_left(members)
    return Row(
        role=first.role,
        group="added" if members[0].axis == "added" else first.group,
        layers=layers if exact_layers or not gone else [],
        op=first.op,
        kind=first.kind,
        dtype=first.dtype,
        batch=_whole(first.batch),
        m=_whole(first.m),
        n=_whole(first.n),
        k=_whole(first.k),
        dense_m=_whole(dense.m) if dense else None,
        dense_n=_whole(dense.n) if dense else None,
        dense_k=_whole(dense.k) if dense else None,
        dense_batch=_whole(dense.batch) if dense else None,
        dense_count=sum(p.dense.count for p in members if p.dense is not None) if dense else None,
        axis=_axis_shown(members[0]) if calls_left is None else "gone",
        keep=_kept(dense, None if gone else first, calls_left) if dense else None,
        count=0.0 if gone else sum(c.count for c in shown),
        flop=first.flop,
        bytes=first.bytes,
        busy_ns=busy,
        helper_ns=0.0 if gone else sum(c.helper for c in shown),
        ideal_ns=ideal,
        bound=None if gone else first.bound,
        efficiency=ideal / known if ideal is not None and known > 0 else None,
        duration_ns=None if gone else took,
        dense_busy_ns=dense_busy,
        promised_ns=wanted,
        loss_ns=None if wanted is None else busy - wanted,
        split=first.split,
        kernels=[] if gone else list(dict.fromkeys(c.kernel for c in shown))[:3],
        shapes=first.shapes,
    )


def _calls_left(members: list[Pair]) -> float | None:
    """The share of its calls that a GEMM of its dense shape still makes, where what decides at run
    time leaves some out; None where it makes all. Experts are called as tokens happen to need."""
    first = members[0]
    if first.axis != "none" or first.dense is None or first.key[1] == "experts":
        return None
    dense = sum(p.dense.count for p in members if p.dense is not None)
    left = sum(p.pruned.count for p in members if p.pruned is not None)
    return left / dense if left < _ALL_CALLS * dense else None


def _dense_busy(members: list[Pair]) -> float | None:
    """Dense time of a row. Both GEMMs of a rank share one dense GEMM: by their own FLOPs."""
    if all(p.dense is None for p in members):
        return None
    total = 0.0
    for pair in members:
        if pair.dense is None:
            continue
        share = 1.0
        if pair.axis == "rank" and pair.pruned is not None and pair.pruned.gemm and pair.dense.gemm:
            old, new = pair.dense.gemm, pair.pruned.gemm
            width = old.k if pair.key[3] == 0 else old.n
            share = width / (old.k + old.n) if new else 1.0
        total += pair.dense.busy * share
    return total


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _kept(dense: Call, pruned: Call | None, calls: float | None) -> dict[str, float]:
    """Kept share of every axis that moved, and of `calls`; {"calls": 0} where the GEMM is gone."""
    if pruned is None:
        return {"calls": 0.0}
    if calls is not None:
        return {"calls": calls}
    out = {}
    for axis in ("batch", "m", "n", "k"):
        old, new = getattr(dense, axis), getattr(pruned, axis)
        if old and new is not None and old != new:
            out["heads" if axis == "batch" else axis] = new / old
    return out
