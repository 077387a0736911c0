"""The anatomy of a phase: sums of its kernels by bound, layer, tile, cause of idle time and op.

In: Kernels and the report's GEMM rows. Out: schema.anatomy.Anatomy; times in ns a step.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.device.tiles import tile_of
from prunescope.analysis.kernels.communication import communication
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import PARTS, cause_sums, host_late
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.kernels.what_if import what_if
from prunescope.analysis.schema.anatomy import Anatomy, HostTime, Idle, LayerTime, RooflinePoint
from prunescope.analysis.schema.report import GemmRow, clock

_POINTS, _HOST, _ACTIVITIES = 60, 20, 12
# Names of causes in report.json that differ from those of the frame: "blocked" is a kernel whose
# stream waits for another one. (A host in a call that copies or waits is `host_blocked`.)
_JSON = {"blocked": "held"}
_LAYERS = 1000  # no model has more
_NO_TILE, _NO_SHAPE, _NO_GRID = "no tile in the name", "no shape", "no grid"


def anatomy(kernels: Kernels, gemms: list[GemmRow]) -> Anatomy:
    """Everything in an Anatomy of one phase."""
    frame, steps = kernels.frame, kernels.num_steps
    shapes, fit = what_if(kernels, gemms)
    dispatch, _ = host_late(frame) if kernels.on_device else (0, 0)
    # A CUDA graph also removes gaps between kernels already queued, and the launch of copies inside
    # it.
    sums = cause_sums(frame)
    queued = sums["device"] + int(frame["idle_copy_launch"].sum())
    has_causes = _knows_causes(kernels)
    gaps = {_JSON.get(cause, cause): ns / steps for cause, ns in sums.items()}
    return Anatomy(
        kind_bounds=_kind_bounds(frame, steps),
        layers=_layers(frame, steps),
        points=_points(frame, steps),
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
        communication=communication(kernels),
    )


def _kind_bounds(frame: pl.DataFrame, steps: int) -> dict[str, dict[str, float]]:
    """Busy time of each kind by what bounds it, the largest kind first."""
    sums = frame.group_by("kind", "bound").agg(pl.col("busy").sum())
    sums = sums.with_columns(of_kind=pl.col("busy").sum().over("kind"))
    sums = sums.sort("of_kind", "kind", "busy", "bound", descending=[True, False, True, False])
    out: dict[str, dict[str, float]] = {}
    for kind, bound, busy, _ in sums.iter_rows():
        out.setdefault(kind, {})[bound] = busy / steps
    return out


def _layers(frame: pl.DataFrame, steps: int) -> list[LayerTime]:
    """Layers in order; rows outside all layers last."""
    sums = frame.group_by("layer", "role").agg(pl.col("busy").sum(), pl.col("gap").sum())
    out: dict[int | None, LayerTime] = {}
    for layer, role, busy, gap in sums.sort("layer", "role", nulls_last=True).iter_rows():
        time = out.setdefault(layer, LayerTime(layer=layer, busy_ns=0.0, gap_ns=0.0, roles={}))
        time.roles[role] = busy / steps
        time.busy_ns += busy / steps
        time.gap_ns += gap / steps
    return list(out.values())[-_LAYERS:]


def _points(frame: pl.DataFrame, steps: int) -> list[RooflinePoint]:
    """Calls with FLOPs and bytes, by kernel, role and work; those that take the most time."""
    known = frame.filter(
        pl.col("carries_work")
        & (pl.col("flop") > 0)
        & (pl.col("bytes") > 0)
        & (pl.col("busy") > 0)
        & pl.col("flop").is_finite()
        & pl.col("bytes").is_finite()
    )
    keys = ["name", "kind", "role", "dtype", "flop", "bytes", "bound"]
    sums = known.group_by(keys).agg(
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
    """GEMM time by how the tile of the kernel's name explains its grid."""
    gemms = frame.filter(pl.col("kind").is_in(GEMM_KINDS))
    sums = gemms.group_by("name", "fit", "blocks").agg(pl.col("busy").sum())
    out: dict[str, float] = {}
    for name, fit, blocks, busy in sums.sort("busy", "name", descending=True).iter_rows():
        tile = fit or (
            _NO_TILE if tile_of(name or "") is None else _NO_GRID if blocks is None else _NO_SHAPE
        )
        out[tile] = out.get(tile, 0.0) + busy / steps
    return out


def _idle(frame: pl.DataFrame, steps: int) -> list[Idle]:
    """Parts of the idle time by what the host was in, the longest first; short ones without it."""
    sums: dict[tuple[str, str | None], int] = {}
    by = frame.group_by("host_activity").agg(pl.col(f"idle_{name}").sum() for name in PARTS)
    for activity, *parts in by.iter_rows():
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
    """Whether most idle time of a device has a known cause, by clocks that agree: else no claim is
    made of what a graph would spare."""
    sums = cause_sums(kernels.frame)
    known = 2 * sums["unknown"] <= sum(sums.values())
    return kernels.on_device and kernels.apart is None and known


def _speedup(kernels: Kernels, left: int) -> float | None:
    """Wall over what is `left` of it, ns of all steps; None where nothing is left."""
    return kernels.wall / left if kernels.wall and left > 0 else None


def _host(kernels: Kernels, steps: int) -> list[HostTime]:
    """Host time by op and role. A launch counts once; time in a blocking call belongs to the op
    around it. The longest waits, of the device or in such a call, come first."""
    launches = pl.col("first_of_launch")
    rows = kernels.frame.filter(pl.col("host_ns").is_not_null() | pl.col("starved") | launches)
    wait = pl.when("starved").then("gap").otherwise(0)
    keys = ["op", "role"]
    sums = rows.group_by(keys).agg(
        launches.fill_null(pl.col("starved")).sum().cast(pl.Int64).alias("count"),
        pl.col("host_ns").sum(),
        wait.sum().alias("wait"),
    )
    sums = sums.join(_host_blocked(kernels), on=keys, how="full", coalesce=True, nulls_equal=True)
    sums = sums.with_columns(pl.col("count", "host_ns", "wait", "blocked").fill_null(0))
    sums = sums.filter(pl.sum_horizontal("host_ns", "wait", "blocked") > 0)
    longest = pl.max_horizontal("wait", "blocked")
    order = [longest, "host_ns", *keys]
    sums = sums.sort(order, descending=[True, True, False, False], nulls_last=True).head(_HOST)
    return [
        HostTime(
            op=row["op"] or "?",
            role=row["role"],
            count=row["count"] / steps,
            host_ns=row["host_ns"] / steps,
            blocked_ns=row["blocked"] / steps,
            wait_ns=row["wait"] / steps,
        )
        for row in sums.iter_rows(named=True)
    ]


def _host_blocked(kernels: Kernels) -> pl.DataFrame:
    """Host time in calls that copy or wait, ns of all steps, by op and by the role of what the op
    launched (unknown where it launched nothing)."""
    roles = kernels.frame.select("instance", "role")
    roles = roles.unique("instance", keep="first", maintain_order=True)
    blocked = kernels.host_blocked.join(roles, on="instance", how="left")
    blocked = blocked.with_columns(pl.col("role").fill_null("unknown"))
    return blocked.group_by("op", "role").agg(pl.col("ns").sum().alias("blocked"))
