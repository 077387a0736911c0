"""Work that is equal on both sides and took another time: all of it, or one GEMM of many.

In: a Context. Out: Found, or None. Times are ns a step, as recorded; of the ledger its rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context, communication
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.schema.report import CAPTURES_DIFFER, OTHER_TIME, Row, is_beyond_noise
from prunescope.taxonomy.words import ms, percent, shortened, when

_MOST = 0.5  # what explains more than this share of a difference is named as its cause
# Kernels changed alike where the 90th percentile of their ratios is at most this times the 10th.
_ALIKE = 1.1
_HOLDS = 0.1  # a ledger row that holds less than this share of the difference is not named
# A GEMM is an outlier beyond this ratio: two kernels that libraries choose for one shape differ by
# less.
_APART = 3.0
_SHARE = 0.01  # an outlier that moves less than this share of the longer step is not named
_KERNELS = "other kernels, clocks, device, contention or overlap"
# By ledger row: its name, and what can move it where no shape moved.
_ROWS = {
    "kernel_efficiency": ("kernel efficiency", _KERNELS),
    "not_explained": ("kernels without shapes", _KERNELS),
    "launch_idle": ("launch and idle", "the host, or what the device waits for"),
}


@finding(OTHER_TIME, "warning", compares=True)
def unexplained_difference(c: Context) -> Found | None:
    """Report that no shape changed, and the runs differ more than captures of one program do."""
    ladder = c.phase.ladder
    if ladder is None or not c.phase.nothing_moved or ladder.is_noise or c.baseline is None:
        return None
    if not c.phase.is_speedup:
        return None  # a setting that differs is the reason: not-comparable says which
    known = [row for name in _ROWS if (row := c.row(name)) is not None and is_beyond_noise(row)]
    least = _HOLDS * sum(abs(row.moves_ns) for row in known)
    rows = [row for row in known if abs(row.moves_ns) > least]
    rows.sort(key=lambda row: -abs(row.moves_ns))
    causes = list(map(_cause, rows))
    differ = f"no shape moved, and the two runs differ by {ladder.realised:.2f}×"
    return Found(
        text=f"{differ}, more than two captures of one program do: {', '.join(causes)}"
        if causes
        else f"{differ}; no row of the ledger is beyond twice its noise, so no cause is known",
        evidence=list(_evidence(c, c.baseline.kernels, rows)) if rows else [],
        rows=causes,
        change="compare clocks, device, library versions and what else ran, and capture both in "
        "one session, in turns",
    )


def _cause(row: Row) -> str:
    """Name a ledger row, its time and what moves it; communication alone where it is most of it."""
    comm = communication(row)
    if abs(comm.moves_ns) > _MOST * abs(row.moves_ns):
        return f"communication {ms(comm.moves_ns)} (its links, or waits for other ranks)"
    name, why = _ROWS[row.row]
    return f"{name} {ms(row.moves_ns)} ({why})"


def _evidence(c: Context, dense: Kernels, rows: list[Row]) -> Iterator[str]:
    """Yield evidence of the cause in the kernels of both sides."""
    of_kernels = [row for row in rows if row.row != "launch_idle"]
    if not of_kernels:
        yield "the kernels take as long as before: the host, or what the device waits for, differs"
        return
    pruned = c.kernels
    old, new = _concurrent_ns(dense), _concurrent_ns(pruned)
    moved = sum(row.moves_ns for row in of_kernels)
    if pruned.on_device and abs(new - old) > _MOST * abs(moved):
        yield (
            f"kernels overlap for {ms(new)} a step on several streams, {ms(old)} in the dense run: "
            "busy time counts that once"
        )
    names = dense.frame["name"].unique().drop_nulls().implode()
    other_kernels = pruned.frame.filter(pl.col("name").is_in(names).not_())
    share = int(other_kernels["busy"].sum()) / max(1, int(pruned.frame["busy"].sum()))
    if share > _MOST:
        yield f"{percent(share)} of the busy time is in kernels that the dense run does not have"
    ratios = _ratios(dense, pruned)
    if len(ratios):
        low, mid, high = np.percentile(ratios, [10, 50, 90])
        takes = (
            f"take {mid:.2f} × the dense time (10th to 90th percentile {low:.2f} to {high:.2f}×)"
        )
        if 1 / CAPTURES_DIFFER <= mid <= CAPTURES_DIFFER:
            yield f"kernels of one name {takes}, as before"
        elif high <= _ALIKE * low:
            yield f"all kernels {takes}: another clock or device, or something else that ran on it"
        else:
            yield f"kernels of one name {takes}"
    for part in [part for row in of_kernels for part in row.parts][:3]:
        yield f"{part.name}: {ms(part.ns)}; {'; '.join(part.evidence)}"


def _concurrent_ns(kernels: Kernels) -> float:
    """Return how many ns a step kernels ran at the same time as others, on several streams."""
    duration, busy = kernels.frame.select(pl.col("duration", "busy").sum()).row(0)
    return (int(duration) - int(busy)) / kernels.num_steps


def _ratios(dense: Kernels, pruned: Kernels) -> np.ndarray:
    """Return pruned ÷ dense time of a call, for each kernel name and role that both sides call."""
    took = "duration" if pruned.on_device else "busy"
    old, new = (
        side.frame.group_by("name", "role").agg(ns=pl.col(took).mean()) for side in (dense, pruned)
    )
    both = old.join(new, on=["name", "role"], suffix="_p").filter(pl.col("ns") > 0)
    return (both["ns_p"] / both["ns"]).to_numpy()


@finding("gemm-outlier", "info")
def gemm_outlier(c: Context) -> Found | None:
    """Report that a GEMM of equal sizes takes several times as long in one run as in the other."""
    both = [
        (new, old.duration / old.count, new.duration / new.count)
        for pair in c.pairs
        if pair.axis == "none" and (old := pair.dense) and (new := pair.pruned)
        if old.gemm is not None and old.gemm == new.gemm and old.dtype == new.dtype
        if old.duration > 0 and new.duration > 0
    ]
    if not both or c.phase.baseline is None:
        return None
    # All GEMMs may have changed alike: that is no outlier, and unexplained-difference says it.
    usual = float(np.median([pruned / dense for _, dense, pruned in both]))
    least = _SHARE * max(c.phase.wall_ns, c.phase.baseline.wall_ns)
    moved = [
        (abs(pruned - usual * dense) * call.count, call, dense, pruned)
        for call, dense, pruned in both
        if not 1 / _APART < pruned / dense / usual < _APART
    ]
    outliers = sorted((gemm for gemm in moved if gemm[0] >= least), key=lambda gemm: -gemm[0])
    if not outliers:
        return None
    _, first, dense_ns, pruned_ns = outliers[0]
    return Found(
        text=f"the same GEMM, {_sized(first)}, takes {c.dense_ms(dense_ns)} in the dense run and "
        f"{c.ms(pruned_ns)} in the pruned one: the kernel chosen, or what ran at the same time, "
        "differs",
        evidence=[
            f"{_sized(call)}: {c.dense_ms(dense)} → {c.ms(pruned)} a call, {shortened(call.kernel)}"
            for _, call, dense, pruned in outliers[:4]
        ],
        change=f"look at this call in the {'pruned' if pruned_ns > dense_ns else 'dense'} trace, "
        "and capture it again before relying on the rows that hold it",
        explains_roles=frozenset(call.role for _, call, *_ in outliers),
    )


def _sized(call: Call) -> str:
    """Format a GEMM by its role, layer and sizes."""
    gemm = call.gemm
    assert gemm is not None
    layer = when(call.layer is not None, f" of layer {call.layer}")
    batch = when(gemm.batch != 1, f"{gemm.batch} × ")
    return f"{call.role}{layer} {batch}{gemm.m}×{gemm.n}×{gemm.k}"
