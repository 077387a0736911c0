"""The GEMMs of a trace that tell what others would take, and why the rest does not.

In: the kernels frame (roofline, tiles and waves). Out: `GemmSummaries`; times in ns a call, as the
kernels ran: what counts of a kernel under another one says nothing of its speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from prunescope.analysis.device.good import Tiling
from prunescope.analysis.device.tiles import ALIGNED
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.report import BESIDE
from prunescope.taxonomy.gemm import Gemm

NO_TILE = "the kernel's name tells no tile that fits"
HIDDEN = "hidden in part under other kernels: what a shorter one would save is not known"
_NO_LAUNCH = (
    "the trace tells no registers or shared memory of the kernel: how many tiles run at a time is "
    "not known"
)
_NO_LIMITS = "how many tiles run at a time on this device is not known"
_NO_PEAK = "no peak of the device is known for it"
_KEYS = ["role", "call", "tile", "along_n", "tiles", "split_k", "waves", "bound", "refused"]
Key = tuple[str, Gemm]  # role, shape


@dataclass(frozen=True)
class GemmSummary:
    """A distinct GEMM as it ran: means a call, ns."""

    role: str
    gemm: Gemm
    tile: str
    tiling: Tiling
    tiles: int
    split_k: int
    slots: float  # tiles in flight at a time
    compute: float  # roofline, without the loss
    memory: float
    bound: str
    duration: float
    total: float  # of all calls

    def predicted(self, n: int, k: int) -> float:
        """Roofline time at another N and K: compute with whole tiles in whole waves, or memory."""
        old = self.gemm
        rows, columns = (int(part) for part in self.tile.split("x"))
        # Every slot of a wave works on a tile, or idles for as long.
        covered = self.tiling.waves(n) * self.slots * rows * columns * k
        compute = self.compute * covered / self.split_k / (old.batch * old.m * old.n * old.k)
        moved = (old.m * k + k * n + old.m * n) / (old.m * old.k + old.k * old.n + old.m * old.n)
        return max(compute, self.memory * moved)

    @property
    def factor(self) -> float:
        """Time ÷ prediction."""
        return self.duration / self.predicted(self.gemm.n, self.gemm.k)

    @property
    def aligned(self) -> bool:
        """Whether tensor cores load its rows without a detour."""
        return self.gemm.n % ALIGNED == 0 and self.gemm.k % ALIGNED == 0


@dataclass(frozen=True)
class GemmSummaries:
    """`gemms` that tell, and of the rest the reason why they do not."""

    gemms: dict[Key, GemmSummary] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)


def is_hidden(busy: float, ran: float) -> bool:
    """Whether kernels ran in part under earlier ones: shorter ones may then save nothing."""
    return busy < BESIDE * ran


def gemm_summaries(kernels: Kernels) -> GemmSummaries:
    """The GEMMs that ran in full view, in kernels whose names tell tiles that explain their grids;
    of the others the reason of those that ran longest."""
    rows = kernels.frame.filter(pl.col("primary") & pl.col("kind").is_in(GEMM_KINDS))
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
    seen = GemmSummaries()
    for row in sums.sort("duration", *_KEYS).iter_rows(named=True):
        work = kernels.works[row["call"]] if row["call"] is not None else None
        if work is None or len(work.gemms) != 1 or not work.gemms[0].k or not row["duration"]:
            continue
        # The kernel that took the most time comes last and stays.
        key = row["role"], work.gemms[0]
        is_under = is_hidden(row["busy"], row["duration"])
        refused = row["refused"] or (HIDDEN if is_under else None)
        if refused is not None:
            seen.refused[key] = refused
        else:
            seen.gemms[key] = _seen(key, row)
    return seen


def _refusal() -> pl.Expr:
    """What a row lacks to be told from; null where nothing."""
    no_launch = pl.col("registers").is_null() | pl.col("shared_memory").is_null()
    return (
        pl.when(pl.col("tile").is_null() | (pl.col("fit") == "unexplained"))
        .then(pl.lit(NO_TILE))
        .when(pl.col("waves").is_null())
        .then(pl.when(no_launch).then(pl.lit(_NO_LAUNCH)).otherwise(pl.lit(_NO_LIMITS)))
        .when(pl.col("ideal").is_null())
        .then(pl.lit(_NO_PEAK))
    )


def _seen(key: Key, row: dict[str, Any]) -> GemmSummary:
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
    """How the tiles of a row of the frame (`along_n`, `tiles`, `waves`) lie over a GEMM."""
    across = max(1, math.ceil(gemm.n / row["along_n"]))
    slots = row["tiles"] / row["waves"] if row["waves"] else None
    return Tiling(side=row["along_n"], column=row["tiles"] / across, slots=slots)
