"""The time of a GEMM at a neighbouring N or K: tile × wave × alignment × roofline.

In: the kernels frame (roofline, tiles and waves) and the report's GEMM rows. Out: a `Shape` for the
GEMM rows, and the `Fit` of the model to the GEMMs that ran. Times are in ns per step.

At N' the tiles of the kernel that ran are counted anew, in whole waves, and the compute time grows
with them; bytes follow the shape. The time is that of the kernel that ran times the ratio of the
two.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import polars as pl
from msgspec import Struct, field

from prunescope.analysis.device.tiles import ALIGNED, FAR, GOOD, Tiling, wave_aligned_neighbours
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.anatomy import Fit, Good, Shape
from prunescope.analysis.schema.report import EXCLUSIVE_SHARE
from prunescope.analysis.schema.report import GemmRow as Row
from prunescope.taxonomy.gemm import Gemm

_FEWEST, _MOST = 3, 100  # the fewest distinct GEMMs for a spread, and the most that are compared
_SMALL = 64  # a smaller K is no dimension of a model
_CURVES, _POINTS = 4, 96
_Z = 1.96  # normal: of prediction intervals, and not of measured times (ledger/noise.py)
_ROOFLINE = ("compute", "memory")  # the bounds whose time it predicts


NO_TILE = "the kernel's name states no tile that fits"
HIDDEN = "hidden in part under other kernels: what a shorter one would save is not known"
_NO_LAUNCH = (
    "the trace holds no registers or shared memory of the kernel: how many tiles run at a time is "
    "not known"
)
_NO_LIMITS = "how many tiles run at a time on this device is not known"
_NO_PEAK = "no peak of the device is known for it"
_KEYS = ["role", "call", "tile", "along_n", "tiles", "split_k", "waves", "bound", "refused"]
_TOLD = ("busy", "duration", "compute_ns", "memory_ns", "ideal", "fit", "registers",
         "shared_memory")  # fmt: skip
Key = tuple[str, Gemm]  # role, shape


class GemmSummary(Struct, frozen=True):
    """A distinct GEMM as it ran: means per call, ns.

    Attributes:
        role: Its role.
        gemm: Its shape.
        tile: The tile of its kernel, "128x64".
        tiling: How the tiles lie over it.
        tiles: Their number.
        split_k: The number of parts of K.
        slots: The tiles in flight at a time.
        compute: Its compute time by the roofline, without the loss of tiles and waves.
        memory: Its memory time by the roofline.
        bound: What bounds it.
        duration: Its time.
        total: The time of all its calls.
    """

    role: str
    gemm: Gemm
    tile: str
    tiling: Tiling
    tiles: int
    split_k: int
    slots: float
    compute: float
    memory: float
    bound: str
    duration: float
    total: float

    def predicted(self, n: int, k: int) -> float:
        """Return the roofline time at another N and K.

        It is the compute time with whole tiles in whole waves, or the memory time.
        """
        old = self.gemm
        rows, columns = (int(part) for part in self.tile.split("x"))
        # Every slot of a wave works on a tile, or idles for as long.
        covered = self.tiling.waves(n) * self.slots * rows * columns * k
        compute = self.compute * covered / self.split_k / (old.batch * old.m * old.n * old.k)
        moved = (old.m * k + k * n + old.m * n) / (old.m * old.k + old.k * old.n + old.m * old.n)
        return max(compute, self.memory * moved)

    @property
    def factor(self) -> float:
        """The time over its prediction."""
        return self.duration / self.predicted(self.gemm.n, self.gemm.k)

    @property
    def aligned(self) -> bool:
        """Whether tensor cores load its rows without a detour."""
        return self.gemm.n % ALIGNED == 0 and self.gemm.k % ALIGNED == 0


class GemmSummaries(Struct, frozen=True):
    """The distinct GEMMs of a phase.

    Attributes:
        gemms: Those whose time can be predicted at other shapes.
        refused: Why the time of the others cannot be predicted.
    """

    gemms: dict[Key, GemmSummary] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)


def is_hidden(busy: float, ran: float) -> bool:
    """Return whether kernels ran concurrently with earlier ones.

    Shorter ones may then save nothing.
    """
    return busy < EXCLUSIVE_SHARE * ran


def gemm_summaries(kernels: Kernels) -> GemmSummaries:
    """Summarise the distinct GEMMs of a phase.

    Predictable are those that did not run concurrently with others, in kernels whose names state
    tiles that explain their grids.
    """
    frame = kernels.frame
    own = frame["primary"] & is_one_of(frame["kind"], GEMM_KINDS)
    rows = frame[[name for name in (*_KEYS, *_TOLD) if name != "refused"]].filter(own)
    sums = (
        rows.with_columns(refused=_refusal())
        .group_by(_KEYS)
        .agg(
            pl.col("busy").sum(),
            pl.col("duration").sum(),
            pl.col("duration").mean().alias("mean"),
            pl.col("compute_ns").first(),
            pl.col("memory_ns").first(),
        )
    )
    summaries = GemmSummaries()
    for row in sums.sort("duration", *_KEYS).iter_rows(named=True):
        work = kernels.shapes.works[row["call"]] if row["call"] is not None else None
        gemm = None if work is None else work.single_gemm
        if gemm is None or not gemm.k or not row["duration"]:
            continue
        # The kernel that took the most time comes last and stays.
        key = row["role"], gemm
        is_under = is_hidden(row["busy"], row["duration"])
        refused = row["refused"] or (HIDDEN if is_under else None)
        if refused is not None:
            summaries.refused[key] = refused
        else:
            summaries.gemms[key] = _summary(key, row)
    return summaries


def _refusal() -> pl.Expr:
    """Return why a row predicts no other shapes; null where it does."""
    no_launch = pl.col("registers").is_null() | pl.col("shared_memory").is_null()
    return (
        pl.when(pl.col("tile").is_null() | (pl.col("fit") == "unexplained"))
        .then(pl.lit(NO_TILE))
        .when(pl.col("waves").is_null())
        .then(pl.when(no_launch).then(pl.lit(_NO_LAUNCH)).otherwise(pl.lit(_NO_LIMITS)))
        .when(pl.col("ideal").is_null())
        .then(pl.lit(_NO_PEAK))
    )


def _summary(key: Key, row: dict[str, Any]) -> GemmSummary:
    """Build the summary of a GEMM from the sums of its rows."""
    role, gemm = key
    return GemmSummary(
        role=role,
        gemm=gemm,
        tile=row["tile"],
        tiling=tiling_of(gemm, row),
        tiles=row["tiles"],
        split_k=row["split_k"],
        slots=row["tiles"] / row["waves"],
        compute=row["compute_ns"],
        memory=row["memory_ns"],
        bound=row["bound"],
        duration=row["mean"],
        total=float(row["duration"]),
    )


def tiling_of(gemm: Gemm, row: dict[str, Any]) -> Tiling:
    """Return how the tiles of a row of the frame (`along_n`, `tiles`, `waves`) lie over a GEMM."""
    across = max(1, math.ceil(gemm.n / row["along_n"]))
    slots = row["tiles"] / row["waves"] if row["waves"] else None
    return Tiling(side=row["along_n"], column=row["tiles"] / across, slots=slots)


def what_if(kernels: Kernels, rows: list[Row]) -> tuple[list[Shape], Fit | None]:
    """Predict the time of every GEMM row at neighbouring N, and at neighbouring K if not aligned.

    Limitations: The kernel that ran is taken to run at the other size too; a library may choose a
    different one there. The interval of a prediction covers such GEMMs as ran in this trace.
    """
    if not kernels.on_device:
        return [], None
    summaries = gemm_summaries(kernels)
    fit = fitted(list(summaries.gemms.values()))
    shapes = []
    num_curves = 0
    for row in sorted(rows, key=lambda r: -r.busy_ns):
        if row.kind not in GEMM_KINDS or not row.count:
            continue
        for axis in ("N", "K"):
            shape = _shape(row, axis, summaries, fit)
            if shape is None:
                continue
            if shape.refused is None and axis == "N" and num_curves < _CURVES:
                shape.curve = _curve(row, summaries)
                num_curves += 1
            shapes.append(shape)
    return shapes, fit


def fitted(seen: list[GemmSummary]) -> Fit | None:
    """Return how time ÷ prediction lies over the GEMMs that ran; None without any.

    It is weighted by time. A GEMM that waits for latency follows no roofline and is left out. The
    spread is that of log(time ÷ prediction) between two GEMMs that lie a factor e apart, its square
    growing with |Δlog M| + |Δlog N| + |Δlog K|: neighbours in shape are neighbours in efficiency.
    """
    seen = [s for s in seen if s.bound in _ROOFLINE]
    if not seen:
        return None
    groups = [[s for s in seen if s.aligned is aligned] for aligned in (True, False)]
    worth = math.exp(_mean_log(groups[1]) - _mean_log(groups[0])) if all(groups) else None
    return Fit(
        gemms=len(seen),
        factor=math.exp(_mean_log(seen)),
        spread=_spread(groups[0]),
        unaligned=worth,
    )


def _mean_log(seen: list[GemmSummary]) -> float:
    """Return the mean of log(time ÷ prediction), weighted by time."""
    total = sum(s.total for s in seen)
    return sum(math.log(s.factor) * s.total / total for s in seen)


def _spread(seen: list[GemmSummary]) -> float | None:
    """Return the spread of a Fit; None for too few GEMMs, or all of one shape."""
    longest = sorted(seen, key=lambda s: -s.total)[:_MOST]
    pairs = [
        (_log_distance(a.gemm, b.gemm), math.log(a.factor / b.factor))
        for a, b in combinations(longest, 2)
    ]
    distance = sum(apart for apart, _ in pairs)
    if len({s.gemm for s in seen}) < _FEWEST or not distance:
        return None
    return math.sqrt(sum(off**2 for _, off in pairs) / distance)


def spread_at(spread: float, a: Gemm, b: Gemm, *, beyond: float = 0.0) -> float:
    """Return half of the 95 % interval of log(time ÷ prediction) between two GEMMs.

    `spread` is that of a Fit; `beyond` is how much further apart the two count.
    """
    return _Z * spread * math.sqrt(_log_distance(a, b) + beyond)


def _log_distance(a: Gemm, b: Gemm) -> float:
    return sum(abs(math.log(x / y)) for x, y in ((a.m, b.m), (a.n, b.n), (a.k, b.k)))


def _key(row: Row) -> Key | None:
    if row.m is None or row.n is None or row.k is None or row.batch is None:
        return None
    return row.role, Gemm(row.m, row.n, row.k, row.batch)


def _shape(row: Row, axis: str, summaries: GemmSummaries, fit: Fit | None) -> Shape | None:
    """Predict one axis of a row; None for a K that is aligned, of which no neighbour is better."""
    now = row.n if axis == "N" else row.k
    if axis == "K" and (now is None or now % GOOD == 0 or now < _SMALL):
        return None
    shape = Shape(
        role=row.role,
        count=row.count,
        m=row.m,
        n=row.n,
        k=row.k,
        axis=axis,
        busy_ns=row.busy_ns,
        dense=row.dense_n if axis == "N" else row.dense_k,
    )
    key = _key(row)
    if key is None or now is None:
        shape.refused = "no shapes" if now is None else "not all of its shape is known"
        return shape
    ran = summaries.gemms.get(key)
    if ran is None or is_hidden(row.busy_ns, row.duration_ns or row.busy_ns):
        shape.refused = summaries.refused.get(key, NO_TILE) if ran is None else HIDDEN
        return shape
    if ran.bound == "latency" and ran.tiles > ran.slots:
        shape.refused = "latency-bound: as short as any kernel, whatever its N"
        return shape
    shape.tile, shape.waves = ran.tile, ran.tiles / ran.slots
    below, above = wave_aligned_neighbours(ran.tiling, axis, now, reach=FAR)
    aligned = [s for s in summaries.gemms.values() if s.aligned and s.bound in _ROOFLINE]
    model = None if fit is None else _Model(fit, aligned)
    shape.below = None if below is None else _good(ran, axis, below, row.busy_ns, model)
    shape.above = None if above is None else _good(ran, axis, above, row.busy_ns, model)
    return shape


class _Model(Struct, frozen=True):
    """The model of GEMMs that did not run.

    Attributes:
        fit: How time ÷ prediction lies over the GEMMs that ran.
        aligned: The aligned GEMMs among them.
    """

    fit: Fit
    aligned: list[GemmSummary]

    def off(self, ran: GemmSummary, gemm: Gemm, *, is_moved: bool) -> float | None:
        """Return half of the 95 % interval of log(time) at `gemm`, predicted from `ran`.

        None without a spread. With `is_moved`, an unaligned GEMM becomes an aligned one: its own
        time then says little, and the interval grows with the distance of the aligned GEMMs that
        ran.
        """
        if self.fit.spread is None:
            return None
        total = sum(s.total for s in self.aligned)
        far = sum(_log_distance(gemm, s.gemm) * s.total / total for s in self.aligned)
        return spread_at(self.fit.spread, gemm, ran.gemm, beyond=far if is_moved else 0.0)


def _good(ran: GemmSummary, axis: str, value: int, busy_ns: float, model: _Model | None) -> Good:
    """Return a dimension with the predicted change of time, and its interval."""
    n, k = (value, ran.gemm.k) if axis == "N" else (ran.gemm.n, value)
    if (n, k) == (ran.gemm.n, ran.gemm.k):
        return Good(value=value, change_ns=0.0, low_ns=0.0, high_ns=0.0)
    ratio = ran.predicted(n, k) / ran.predicted(ran.gemm.n, ran.gemm.k)
    is_moved = not ran.aligned and n % ALIGNED == 0 and k % ALIGNED == 0
    if is_moved:
        if model is None or model.fit.unaligned is None:
            # This trace does not show what alignment is worth.
            return Good(value=value, change_ns=None, low_ns=None, high_ns=None)
        ratio /= model.fit.unaligned
    good = Good(value=value, change_ns=busy_ns * (ratio - 1), low_ns=None, high_ns=None)
    off = model.off(ran, Gemm(ran.gemm.m, n, k), is_moved=is_moved) if model is not None else None
    if off is not None:
        good.low_ns = busy_ns * (ratio * math.exp(-off) - 1)
        good.high_ns = busy_ns * (ratio * math.exp(off) - 1)
    return good


def _curve(row: Row, summaries: GemmSummaries) -> list[list[float]]:
    """Return [N, ns per step] up to a quarter beyond the wider of the two models."""
    key = _key(row)
    if key is None or row.n is None:
        return []
    ran = summaries.gemms[key]
    top = int(1.25 * max(row.n, row.dense_n or 0))
    width = max(GOOD, -(-top // _POINTS // GOOD) * GOOD)
    now = ran.predicted(row.n, ran.gemm.k)
    points = sorted({*range(width, top + 1, width), row.n, *([row.dense_n] if row.dense_n else [])})
    return [[n, row.busy_ns * ran.predicted(n, ran.gemm.k) / now] for n in points]
