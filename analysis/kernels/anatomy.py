"""The anatomy of a phase: its kernels summed by bound, layer, tile, cause of idle time and op.

In: `Kernels` and the GEMM rows of the report. Out: `schema.anatomy.Anatomy`, with the communication
of the phase; times are in ns per step.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl

from prunescope.analysis.device.tiles import tile_of
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import PARTS
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.kernels.what_if import what_if
from prunescope.analysis.schema.anatomy import (
    Anatomy,
    Communication,
    HostTime,
    Idle,
    LayerTime,
    RooflinePoint,
    SideAnatomy,
)
from prunescope.analysis.schema.report import GemmRow, clock
from prunescope.analysis.timeline.intervals import cover

_POINTS, _HOST, _ACTIVITIES = 60, 20, 12
# Names of causes in report.json that differ from those of the frame: "blocked" is a kernel whose
# stream waits for another one. (A host in a call that copies or waits is `host_blocked`.)
_JSON = {"blocked": "held"}
_LAYERS = 1000  # no model has more
_NO_TILE, _NO_SHAPE, _NO_GRID = "no tile in the name", "no shape", "no grid"


def anatomy(kernels: Kernels, gemms: list[GemmRow]) -> Anatomy:
    """Sum the kernels of a phase in all the ways that a report shows."""
    frame, steps = kernels.frame, kernels.num_steps
    shapes, fit = what_if(kernels, gemms)
    dispatch, _ = kernels.late_host if kernels.on_device else (0, 0)
    # A CUDA graph also removes gaps between kernels already queued, and the launch of copies inside
    # it.
    sums = kernels.idle_by_cause
    queued = sums["device"] + int(frame["idle_copy_launch"].sum())
    has_causes = _knows_causes(kernels)
    gaps = {_JSON.get(cause, cause): ns / steps for cause, ns in sums.items()}
    return Anatomy(
        **_shared_parts(kernels),
        tiles=_tiles(frame, steps) if kernels.on_device else {},
        gaps={**gaps, "tail": kernels.trailing_idle / steps},
        graph_speedup=_speedup(kernels, kernels.wall - dispatch) if has_causes else None,
        kernels_speedup=_speedup(kernels, kernels.wall - dispatch - queued)
        if has_causes and not kernels.is_replay
        else None,
        dispatch_ns=dispatch / steps if kernels.on_device else None,
        host=_host(kernels, steps) if kernels.on_device else [],
        shapes=shapes,
        fit=fit,
        idle=_idle(frame, steps) if kernels.on_device else [],
        communication=_communication(kernels),
    )


def side_anatomy(kernels: Kernels) -> SideAnatomy:
    """Sum the kernels of the dense side of a phase in the ways that figures compare."""
    return SideAnatomy(**_shared_parts(kernels))


def _shared_parts(kernels: Kernels) -> dict[str, Any]:
    frame, steps = kernels.frame, kernels.num_steps
    return {
        "kind_bounds": _kind_bounds(frame, steps),
        "layers": _layers(frame, steps),
        "points": _points(frame, steps),
    }


def _kind_bounds(frame: pl.DataFrame, steps: int) -> dict[str, dict[str, float]]:
    """Sum the busy time of each kind by what bounds it, the largest kind first."""
    sums = frame[["kind", "bound", "busy"]].group_by("kind", "bound").agg(pl.col("busy").sum())
    of_kind: Counter[str] = Counter()
    for kind, _, busy in sums.iter_rows():
        of_kind[kind] += busy
    bounds: dict[str, dict[str, float]] = {}
    order = sorted(sums.iter_rows(), key=lambda row: (-of_kind[row[0]], row[0], -row[2], row[1]))
    for kind, bound, busy in order:
        bounds.setdefault(kind, {})[bound] = busy / steps
    return bounds


def _layers(frame: pl.DataFrame, steps: int) -> list[LayerTime]:
    """Sum busy and idle time by layer and role, in the order of layers.

    Rows outside all layers come last.
    """
    rows = frame[["layer", "role", "busy", "gap"]]
    sums = rows.group_by("layer", "role").agg(pl.col("busy", "gap").sum())
    layers: dict[int | None, LayerTime] = {}
    for layer, role, busy, gap in sums.sort("layer", "role", nulls_last=True).iter_rows():
        time = layers.setdefault(layer, LayerTime(layer=layer, busy_ns=0.0, gap_ns=0.0, roles={}))
        time.roles[role] = busy / steps
        time.busy_ns += busy / steps
        time.gap_ns += gap / steps
    return list(layers.values())[-_LAYERS:]


def _points(frame: pl.DataFrame, steps: int) -> list[RooflinePoint]:
    """Return the calls with FLOPs and bytes that take the most time, by kernel, role and work."""
    flop, size = frame["flop"], frame["bytes"]
    known = frame["carries_work"] & (frame["busy"] > 0)
    known = known & (flop > 0) & (flop < math.inf) & (size > 0) & (size < math.inf)
    keys = ["name", "kind", "role", "dtype", "flop", "bytes", "bound"]
    rows = frame[[*keys, "busy", "duration", "category"]].filter(known)
    sums = rows.group_by(keys).agg(
        pl.col("busy").sum(),
        pl.len().alias("count"),
        pl.col("duration").filter(pl.col("category").is_not_null()).sum().alias("ran"),
    )
    sums = sums.sort(["busy", *keys], descending=[True, *[False] * len(keys)]).head(_POINTS)
    return [
        RooflinePoint(
            name=row["name"] or "?",
            kind=row["kind"],
            role=row["role"],
            dtype=row["dtype"],
            count=row["count"] / steps,
            flop=row["flop"],
            bytes=row["bytes"],
            busy_ns=row["busy"] / steps,
            clock_ns=clock(row["busy"], row["ran"]) / steps,
            bound=row["bound"],
        )
        for row in sums.iter_rows(named=True)
    ]


def _tiles(frame: pl.DataFrame, steps: int) -> dict[str, float]:
    """Sum the time of GEMMs by how the tile in the kernel's name explains its grid."""
    gemms = is_one_of(frame["kind"], GEMM_KINDS)
    rows = frame[["name", "fit", "blocks", "busy"]].filter(gemms)
    sums = rows.group_by("name", "fit", "blocks").agg(pl.col("busy").sum())
    times: dict[str, float] = {}
    for name, fit, blocks, busy in sums.sort("busy", "name", descending=True).iter_rows():
        tile = fit or (
            _NO_TILE if tile_of(name or "") is None else _NO_GRID if blocks is None else _NO_SHAPE
        )
        times[tile] = times.get(tile, 0.0) + busy / steps
    return times


def _idle(frame: pl.DataFrame, steps: int) -> list[Idle]:
    """Sum the idle time by cause and by what the host was doing, the longest first.

    Only the activities with the most idle time are named.
    """
    sums: dict[tuple[str, str | None], int] = {}
    idle = [f"idle_{name}" for name in PARTS]
    sums_by_activity = (
        frame[["host_activity", *idle]].group_by("host_activity").agg(pl.col(idle).sum())
    )
    for activity, *parts in sums_by_activity.iter_rows():
        for (name, cause), ns in zip(PARTS.items(), parts, strict=True):
            key = (name, activity if cause == "host" else None)
            sums[key] = sums.get(key, 0) + ns
    short = sorted((k for k in sums if k[1]), key=lambda k: (-sums[k], k))[_ACTIVITIES:]
    for key in short:
        unnamed = (key[0], None)
        sums[unnamed] = sums.get(unnamed, 0) + sums.pop(key)
    order = sorted(sums, key=lambda k: (-sums[k], k[0], k[1] or ""))
    return [
        Idle(doing=_JSON.get(k[0], k[0]), beside=k[1], ns=sums[k] / steps) for k in order if sums[k]
    ]


def _knows_causes(kernels: Kernels) -> bool:
    """Return whether most idle time of a device has a known cause, by clocks that agree.

    Else nothing is claimed about what a CUDA graph would save.
    """
    sums = kernels.idle_by_cause
    known = 2 * sums["unknown"] <= sum(sums.values())
    return kernels.on_device and kernels.profiler.clock_skew is None and known


def _speedup(kernels: Kernels, left: int) -> float | None:
    """Return the wall over the time `left` of it, ns of all steps; None if nothing is left."""
    return kernels.wall / left if kernels.wall and left > 0 else None


def _host(kernels: Kernels, steps: int) -> list[HostTime]:
    """Sum the time of the host by op and role, the longest waits first.

    A launch counts once. Time in a blocking call belongs to the op around it. The device waits for
    the host, or the host waits in a blocking call: the longer of the two orders the rows.
    """
    frame, keys = kernels.frame, ["op", "role"]
    counts = frame["host_ns"].is_not_null() | frame["starved"] | frame["first_of_launch"]
    rows = frame[[*keys, "host_ns", "starved", "gap", "first_of_launch"]].filter(counts)
    sums_by_op = rows.group_by(keys).agg(
        pl.col("first_of_launch").fill_null(pl.col("starved")).sum(),
        pl.col("host_ns").sum(),
        pl.col("gap").filter(pl.col("starved")).sum(),
    )
    sums = {(op, role): (count, ns, wait) for op, role, count, ns, wait in sums_by_op.iter_rows()}
    blocked = _host_blocked(kernels)
    host_times = [
        (key, *sums.get(key, (0, 0, 0)), blocked.get(key, 0))
        for key in dict.fromkeys([*sums, *blocked])
    ]
    host_times = [entry for entry in host_times if sum(entry[2:]) > 0]
    # By the longest wait, then by time; of the same times by name, the last without one.
    host_times.sort(key=lambda entry: (-max(entry[3:]), -entry[2], entry[0][0] is None, entry[0]))
    return [
        HostTime(
            op=op or "?",
            role=role,
            count=count / steps,
            host_ns=ns / steps,
            blocked_ns=within / steps,
            wait_ns=wait / steps,
        )
        for (op, role), count, ns, wait, within in host_times[:_HOST]
    ]


def _host_blocked(kernels: Kernels) -> dict[tuple[str, str], int]:
    """Sum the time of the host in calls that copy or wait, by op and role; ns of all steps.

    The role is that of what the op launched: unknown where it launched nothing.
    """
    if kernels.host.blocked.is_empty():
        return {}
    roles = kernels.frame[["instance", "role"]]
    roles = roles.unique("instance", keep="first", maintain_order=True)
    blocked = kernels.host.blocked.join(roles, on="instance", how="left")
    sums_by_op = blocked.group_by("op", "role").agg(pl.col("ns").sum())
    blocked_ns: Counter[tuple[str, str]] = Counter()
    for op, role, ns in sums_by_op.iter_rows():
        blocked_ns[op, role or "unknown"] += ns
    return blocked_ns


def _communication(kernels: Kernels) -> Communication | None:
    """Measure the communication on a device, ns per step; None without any.

    The busy time of a kind counts for the kernel that began first, so that a collective takes time
    from a concurrent GEMM, or the other way round. Here other work comes first: the time that only
    communication fills is exposed.
    """
    if "comm" not in kernels.values("kind"):
        return None
    rows = _rows_within_walls(kernels.frame.filter(pl.col("category").is_not_null()))
    of_comm = rows.filter(pl.col("kind") == "comm")
    if not len(of_comm):
        return None
    work = rows.filter(pl.col("kind") != "comm").with_columns(busy=pl.lit(0))
    if len(work):
        work = work.with_columns(busy=pl.Series(_uncovered_ns(work)))
    steps = kernels.num_steps
    exposed = int(_uncovered_ns(rows).sum()) - int(work["busy"].sum())
    kinds = work.group_by("kind").agg(pl.col("busy").sum()).sort("busy", "kind", descending=True)
    return Communication(
        exposed_ns=exposed / steps,
        overlapped_ns=(int(_uncovered_ns(of_comm).sum()) - exposed) / steps,
        kinds={kind: ns / steps for kind, ns in kinds.iter_rows()},
    )


def _rows_within_walls(frame: pl.DataFrame) -> pl.DataFrame:
    """Return kind, start and end of the rows within the walls of their steps, by start."""
    start, end = pl.col("start"), pl.col("start") + pl.col("duration")
    # The first row with a gap or busy time says where the wall of its step begins.
    begin = pl.when(pl.col("gap") > 0).then(start - pl.col("gap")).otherwise(end - pl.col("busy"))
    counts = (pl.col("gap") > 0) | (pl.col("busy") > 0)
    first = begin.filter(counts).first().over("step")
    rows = frame.select("kind", start=pl.max_horizontal(start, first), end=end)
    return rows.filter(pl.col("end") > pl.col("start")).sort("start")


def _uncovered_ns(rows: pl.DataFrame) -> pl.Series:
    """Return the part of each row that no earlier row covers, ns."""
    start = rows["start"].to_numpy()
    busy, _ = cover(start, rows["end"].to_numpy(), int(start[0]))
    return pl.Series(busy)
