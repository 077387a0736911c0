"""Communication of a phase: how much of it is exposed, and how much is concurrent with other work.

In: Kernels. Out: schema.anatomy.Communication, ns a step; None without communication on a device.

The busy time of a kind counts for the kernel that began first, so that a collective takes
time from a concurrent GEMM, or the other way round. Here other work comes first: what only
communication fills is exposed.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.schema.anatomy import Communication
from prunescope.analysis.timeline.intervals import cover


def communication(kernels: Kernels) -> Communication | None:
    """The communication of a phase."""
    if "comm" not in kernels.values("kind"):
        return None
    rows = _clipped(kernels.frame.filter(pl.col("category").is_not_null()))
    of_comm = rows.filter(pl.col("kind") == "comm")
    if not len(of_comm):
        return None
    work = rows.filter(pl.col("kind") != "comm").with_columns(busy=pl.lit(0))
    if len(work):
        work = work.with_columns(busy=pl.Series(_busy(work)))
    steps = kernels.num_steps
    exposed = int(_busy(rows).sum()) - int(work["busy"].sum())
    kinds = work.group_by("kind").agg(pl.col("busy").sum()).sort("busy", "kind", descending=True)
    return Communication(
        exposed_ns=exposed / steps,
        overlapped_ns=(int(_busy(of_comm).sum()) - exposed) / steps,
        kinds={kind: ns / steps for kind, ns in kinds.iter_rows()},
    )


def _clipped(frame: pl.DataFrame) -> pl.DataFrame:
    """Kind, start and end of the rows within the walls of their steps, in order of start."""
    start, end = pl.col("start"), pl.col("start") + pl.col("duration")
    # The first row with a gap or busy time says where the wall of its step begins.
    begin = pl.when(pl.col("gap") > 0).then(start - pl.col("gap")).otherwise(end - pl.col("busy"))
    counts = (pl.col("gap") > 0) | (pl.col("busy") > 0)
    first = begin.filter(counts).first().over("step")
    rows = frame.select("kind", start=pl.max_horizontal(start, first), end=end)
    return rows.filter(pl.col("end") > pl.col("start")).sort("start")


def _busy(rows: pl.DataFrame) -> pl.Series:
    """The part of each row that no earlier one covers, ns."""
    start = rows["start"].to_numpy()
    busy, _ = cover(start, rows["end"].to_numpy(), int(start[0]))
    return pl.Series(busy)
