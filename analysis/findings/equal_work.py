"""Work that is equal on both sides and took another time: all of it, or one GEMM of many.

In: a Context. Out: Found, or None. Times are ns a step, as recorded; of the ledger its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context, communication
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Call
from prunescope.analysis.schema.report import CAPTURES_DIFFER, OTHER_TIME, Row, is_beyond_noise
from prunescope.taxonomy.words import ms, percent, shortened

_MOST = 0.5  # what explains more than this share of a difference is named as its cause
# Kernels changed alike where the 90th percentile of their ratios is at most this times the 10th.
_ALIKE = 1.1
_HOLDS = 0.1  # a ledger row that holds less than this share of the difference is not named
# A GEMM is an outlier beyond this ratio: two kernels that libraries choose for one shape differ by
# less.
_APART = 3.0
_SHARE = 0.01  # an outlier that moves less than this share of the longer step is not named
_KERNELS = "other kernels, clocks, device, contention or overlap"
_COMMUNICATION = "its links, or waits for other ranks"
# By ledger row: its name, and what can move it where no shape moved.
_ROWS = {
    "kernel_efficiency": ("kernel efficiency", _KERNELS),
    "not_explained": ("kernels without shapes", _KERNELS),
    "launch_idle": ("launch and idle", "the host, or what the device waits for"),
}


@finding(OTHER_TIME, "warning", compares=True)
def unexplained_difference(c: Context) -> Found | None:
    """No shape changed, and the runs differ by more than two captures of one program do."""
    ladder = c.phase.ladder
    if ladder is None or not c.phase.nothing_moved or ladder.is_noise or c.baseline is None:
        return None
    if not c.phase.is_speedup:
        return None  # a setting that differs is the reason: not-comparable says which
    rows = _rows(c)
    named = [f"{name} {ns} ({why})" for name, why, ns in map(_named, rows)]
    differ = f"no shape moved, and the two runs differ by {ladder.realised:.2f}×"
    return Found(
        text=f"{differ}, more than two captures of one program do: {', '.join(named)}"
        if named
        else f"{differ}; no row of the ledger is beyond twice its noise, so no cause is known",
        evidence=list(_causes(c, c.baseline.kernels, rows)),
        rows=named,
        change="compare clocks, device, library versions and what else ran, and capture both in "
        "one session, in turns",
    )


def _named(row: Row) -> tuple[str, str, str]:
    """A ledger row, what moves it, and its time; communication alone where that is most of it."""
    comm = communication(row)
    if abs(comm.moves_ns) > _MOST * abs(row.moves_ns):
        return "communication", _COMMUNICATION, ms(comm.moves_ns)
    return (*_ROWS[row.row], ms(row.moves_ns))


def _rows(c: Context) -> list[Row]:
    """The ledger rows beyond their noise that hold the difference, the largest first."""
    found = [row for name in _ROWS if (row := c.row(name)) is not None and is_beyond_noise(row)]
    total = sum(abs(row.moves_ns) for row in found)
    found = [row for row in found if abs(row.moves_ns) > _HOLDS * total]
    return sorted(found, key=lambda row: -abs(row.moves_ns))


def _causes(c: Context, dense: Kernels, rows: list[Row]) -> Iterator[str]:
    """Evidence of the cause in the kernels of both sides."""
    kernels = [row for row in rows if row.row != "launch_idle"]
    if not rows:
        return
    if not kernels:
        yield "the kernels take as long as before: the host, or what the device waits for, differs"
        return
    pruned = c.kernels
    moved = sum(row.moves_ns for row in kernels)
    if pruned.on_device:
        yield from _overlap(dense, pruned, moved)
    other = _in_other_kernels(dense, pruned)
    if other > _MOST:
        yield f"{percent(other)} of the busy time is in kernels that the dense run does not have"
    ratios = _ratios(dense, pruned)
    if len(ratios):
        low, mid, high = np.percentile(ratios, [10, 50, 90])
        spread = f"10th to 90th percentile {low:.2f} to {high:.2f}×"
        if 1 / CAPTURES_DIFFER <= mid <= CAPTURES_DIFFER:
            yield f"kernels of one name take {mid:.2f} × the dense time ({spread}), as before"
        elif high <= _ALIKE * low:
            yield (
                f"all kernels take {mid:.2f} × the dense time ({spread}): another clock or device, "
                "or something else that ran on it"
            )
        else:
            yield f"kernels of one name take {mid:.2f} × the dense time ({spread})"
    for part in [part for row in kernels for part in row.parts][:3]:
        yield f"{part.name}: {ms(part.ns)}; {'; '.join(part.evidence)}"


def _overlap(dense: Kernels, pruned: Kernels, moved: float) -> Iterator[str]:
    """Kernels that ran at the same time as others, where that explains the change of busy time."""
    old, new = _concurrent(dense), _concurrent(pruned)
    if abs(new - old) > _MOST * abs(moved):
        yield (
            f"kernels overlap for {ms(new)} a step on several streams, {ms(old)} in the dense run: "
            "busy time counts that once"
        )


def _concurrent(kernels: Kernels) -> float:
    """ns a step that kernels ran at the same time as others."""
    sums = kernels.frame.select(pl.col("duration", "busy").sum()).row(0)
    return (int(sums[0]) - int(sums[1])) / kernels.num_steps


def _in_other_kernels(dense: Kernels, pruned: Kernels) -> float:
    """The share of the pruned busy time in kernels whose names the dense side lacks."""
    names = dense.frame["name"].unique().drop_nulls().implode()
    others = pruned.frame.filter(pl.col("name").is_in(names).not_())
    return int(others["busy"].sum()) / max(1, int(pruned.frame["busy"].sum()))


def _ratios(dense: Kernels, pruned: Kernels) -> np.ndarray:
    """Pruned over dense time of a call, of each kernel name and role that both sides call."""
    took = "duration" if pruned.on_device else "busy"
    sides = [
        one.frame.group_by("name", "role").agg(ns=pl.col(took).mean()) for one in (dense, pruned)
    ]
    both = sides[0].join(sides[1], on=["name", "role"], suffix="_p").filter(pl.col("ns") > 0)
    return (both["ns_p"] / both["ns"]).to_numpy()


@dataclass(frozen=True)
class _Outlier:
    """A GEMM of equal sizes on both sides, in ns a call, and how much time that moves a step."""

    call: Call
    dense: float
    pruned: float
    moves: float


@finding("gemm-outlier", "info")
def gemm_outlier(c: Context) -> Found | None:
    """A GEMM of equal sizes takes several times as long in one of the runs as in the other."""
    both = [
        (p.dense, p.pruned, p.pruned.duration / p.pruned.count, p.dense.duration / p.dense.count)
        for p in c.pairs or []
        if p.axis == "none" and p.dense is not None and p.pruned is not None
        if p.dense.gemm is not None and p.dense.gemm == p.pruned.gemm
        if p.dense.dtype == p.pruned.dtype and p.dense.duration > 0 and p.pruned.duration > 0
    ]
    if not both or c.phase.baseline is None:
        return None
    # All GEMMs may have changed alike: that is no outlier, and unexplained-difference says it.
    usual = float(np.median([new / old for _, _, new, old in both]))
    least = _SHARE * max(c.phase.wall_ns, c.phase.baseline.wall_ns)
    outliers = [
        _Outlier(call, old, new, abs(new - usual * old) * call.count)
        for _, call, new, old in both
        if not 1 / _APART < new / old / usual < _APART
    ]
    outliers = sorted((o for o in outliers if o.moves >= least), key=lambda o: -o.moves)
    if not outliers:
        return None
    first = outliers[0]
    slower = "pruned" if first.pruned > first.dense else "dense"
    return Found(
        text=f"the same GEMM, {_sized(first.call)}, takes {c.dense_ms(first.dense)} in the dense "
        f"run and {c.ms(first.pruned)} in the pruned one: the kernel chosen, or what ran at the "
        "same time, differs",
        evidence=[
            f"{_sized(o.call)}: {c.dense_ms(o.dense)} → {c.ms(o.pruned)} a call, "
            f"{shortened(o.call.kernel)}"
            for o in outliers[:4]
        ],
        change=f"look at this call in the {slower} trace, and capture it again before relying on "
        "the rows that hold it",
        explains_roles=frozenset(o.call.role for o in outliers),
    )


def _sized(call: Call) -> str:
    at = "" if call.layer is None else f" of layer {call.layer}"
    gemm = call.gemm
    assert gemm is not None
    batch = f"{gemm.batch} × " if gemm.batch != 1 else ""
    return f"{call.role}{at} {batch}{gemm.m}×{gemm.n}×{gemm.k}"
