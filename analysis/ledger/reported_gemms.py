"""The rows of the GEMM table of a report.

In: pairs of GEMMs, or the calls of one side. Out: `GemmRow`s, whose times are ns per step, summed
over the layers and calls that a row stands for.
"""

from __future__ import annotations

from collections import defaultdict

from prunescope.analysis.ledger.call import Call, GemmKey
from prunescope.analysis.ledger.experts import (
    EXPERTS,
    pool_layers,
)
from prunescope.analysis.ledger.gemms import ALL_CALLS, Pair
from prunescope.analysis.ops.call import sum_known
from prunescope.analysis.schema.report import GemmRow, clock


def _show_axis(pair: Pair) -> str | None:
    """Return the axis for a report: unknown where no side says its sizes, rather than none."""
    calls = [call for call in (pair.dense, pair.pruned) if call is not None]
    unread = all(call.m is None and call.n is None and call.k is None for call in calls)
    return "unknown" if unread and pair.axis == "none" else pair.axis or None


def build_gemm_rows(pairs: list[Pair], *, promised: float, exact_layers: bool) -> list[GemmRow]:
    """Build the rows of the report: pairs with one key (role, op, shapes, axis) over all layers.

    Args:
        pairs: The pairs of GEMMs.
        promised: The share of the dense time that was to remain.
        exact_layers: Whether the numbers of removed layers are evidence.
    """
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        call = pair.pruned or pair.dense
        assert call is not None
        if _is_attention_of_unknown_shape(call):
            continue
        lacks = pair.pruned is None
        groups[_row_key(call), _row_sizes(pair.dense), pair.axis, lacks].append(pair)
    rows = [
        _build_row(members, promised=promised, exact_layers=exact_layers)
        for members in groups.values()
    ]
    return sorted(rows, key=lambda r: (-(r.dense_busy_ns or r.busy_ns), r.role))


def build_single_rows(calls: dict[GemmKey, Call]) -> list[GemmRow]:
    """Build the rows of a side without a baseline: they have a group and sizes, but no axis."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for key, call in calls.items():
        if not _is_attention_of_unknown_shape(call):
            groups[_row_key(call)].append(Pair(key, None, call, ""))
    rows = [_build_row(members, promised=None, exact_layers=True) for members in groups.values()]
    return sorted(rows, key=lambda r: -r.busy_ns)


def _is_attention_of_unknown_shape(call: Call) -> bool:
    """Return whether a call is a fused attention whose GEMMs are unknown, which have no row."""
    return call.kind == "attention" and call.gemm is None


def _row_key(call: Call) -> tuple[object, ...]:
    """Return what the calls of one row have in common."""
    # Whether an expert sees one row or several is its router's choice.
    kind = "gemm" if call.role == EXPERTS and call.kind == "gemv" else call.kind
    return (call.role, call.group, call.op, kind, call.dtype, call.shapes, *_row_sizes(call))


def _row_sizes(call: Call | None) -> tuple[float | None, ...]:
    """Return batch, M, N and K as far as they distinguish rows."""
    if call is None:
        return (None,) * 4
    # How many rows an expert sees is its router's choice, and differs from layer to layer.
    rows = (None, None) if call.role == EXPERTS and call.n is not None else (call.batch, call.m)
    return (*rows, call.n, call.k)


def _build_row(members: list[Pair], *, promised: float | None, exact_layers: bool) -> GemmRow:
    """Build a row of the report from the pairs of one key."""
    removed = members[0].pruned is None
    dense_calls = [p.dense for p in members if p.dense is not None]
    shown = dense_calls if removed else [p.pruned for p in members if p.pruned is not None]
    run = [] if removed else shown
    first, dense = shown[0], members[0].dense
    if first.role == EXPERTS:
        first, dense = pool_layers(shown), pool_layers(dense_calls) if dense else None
    rows = first.spans[1] if first.role == EXPERTS and first.spans and not removed else (None, None)
    busy = float(sum(c.busy for c in run))
    ideal = None if removed else sum_known(c.ideal for c in run)
    took = float(sum(c.duration for c in run))
    known = clock(busy, took)
    dense_busy = _dense_busy(members)
    wanted = None if promised is None or dense_busy is None else promised * dense_busy
    layers = sorted({c.layer for c in shown if c.layer is not None})
    calls_left = _share_of_calls_left(members)
    return GemmRow(
        role=first.role,
        group="added" if members[0].axis == "added" else first.group,
        layers=layers if exact_layers or not removed else [],
        op=first.op,
        kind=first.kind,
        dtype=first.dtype,
        batch=_round(first.batch),
        m=_round(first.m),
        n=_round(first.n),
        k=_round(first.k),
        dense_m=_round(dense.m) if dense else None,
        dense_n=_round(dense.n) if dense else None,
        dense_k=_round(dense.k) if dense else None,
        dense_batch=_round(dense.batch) if dense else None,
        dense_count=sum(c.count for c in dense_calls) if dense else None,
        axis=_show_axis(members[0]) if calls_left is None else "gone",
        keep=_kept_shares(members[0], dense, None if removed else first, calls_left)
        if dense
        else None,
        count=float(sum(c.count for c in run)),
        flop=first.flop,
        bytes=first.bytes,
        busy_ns=busy,
        auxiliary_ns=float(sum(c.auxiliary for c in run)),
        ideal_ns=ideal,
        bound=None if removed or first.flop == 0 else first.bound,
        efficiency=ideal / known if ideal is not None and known > 0 else None,
        duration_ns=None if removed else took,
        dense_busy_ns=dense_busy,
        promised_ns=wanted,
        loss_ns=None if wanted is None else busy - wanted,
        split=first.split,
        groups=None if removed else first.groups,
        dense_groups=dense.groups if dense else None,
        m_min=_round(rows[0]),
        m_max=_round(rows[1]),
        kernels=list(dict.fromkeys(c.kernel for c in run))[:3],
        shapes=first.shapes,
    )


def _share_of_calls_left(members: list[Pair]) -> float | None:
    """Return the share of its calls that a GEMM of its dense shape makes; None where it is all.

    A family that decides at run time leaves some calls out. Experts are called as tokens happen to
    need them, and do not count.
    """
    first = members[0]
    if first.axis != "none" or first.dense is None or first.key[1] == "experts":
        return None
    dense = sum(p.dense.count for p in members if p.dense is not None)
    left = sum(p.pruned.count for p in members if p.pruned is not None)
    return left / dense if left < ALL_CALLS * dense else None


def _dense_busy(members: list[Pair]) -> float | None:
    """Return the dense time of a row.

    Two GEMMs through a rank share the time of one dense GEMM, by their FLOPs.
    """
    if all(p.dense is None for p in members):
        return None
    busy = 0.0
    for pair in members:
        if pair.dense is None:
            continue
        share = 1.0
        old, new = pair.gemms
        if pair.axis == "rank" and old is not None and new is not None:
            share = (old.k if pair.key[3] == 0 else old.n) / (old.k + old.n)
        busy += pair.dense.busy * share
    return busy


def _round(value: float | None) -> int | None:
    """Round a size that is known."""
    return None if value is None else round(value)


def _kept_shares(
    pair: Pair, dense: Call, pruned: Call | None, calls: float | None
) -> dict[str, float]:
    """Return the kept share of every axis that moved, and of the calls.

    A removed GEMM gives {"calls": 0}.

    Args:
        pair: One pair of the row.
        dense: The dense call that stands for all pairs of the row.
        pruned: The pruned call that does; None where it was removed.
        calls: The share of its calls that is left; None where it makes all.
    """
    if pruned is None:
        return {"calls": 0.0}
    if calls is not None:
        return {"calls": calls}
    shares = {}
    of_experts = dense.role == EXPERTS  # of which the router chooses how many rows each sees
    for axis in ("n", "k") if of_experts else ("batch", "m", "n", "k"):
        old, new = getattr(dense, axis), getattr(pruned, axis)
        if old and new is not None and old != new:
            shares["heads" if axis == "batch" else axis] = new / old
    if not of_experts:
        return shares
    if pair.axis == "M" and dense.all_rows:
        shares["m"] = pruned.all_rows / dense.all_rows
    if dense.stack and pruned.stack and pruned.stack != dense.stack:
        shares["groups"] = pruned.stack / dense.stack
    elif pair.groups_left not in (None, 1.0):
        shares["groups"] = pair.groups_left
    return shares
