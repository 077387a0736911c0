"""Kernels that run at once: for how long each is alone, and for how long any of several runs.

In: rows of the kernels frame, whose `start` and `duration` are ns. Out: ns.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.timeline.link import cover


def alone(rows: pl.DataFrame) -> pl.Series:
    """For how much of each row's run no other one runs, ns."""
    start, end = _spans(rows)
    at = np.concatenate((start, end))
    opens = np.repeat((1, -1), len(start))
    order = np.argsort(at, kind="stable")
    at = at[order]
    one = np.cumsum(opens[order])[:-1] == 1
    spent = np.concatenate(([0], np.cumsum(np.where(one, np.diff(at), 0))))
    return pl.Series(spent[np.searchsorted(at, end)] - spent[np.searchsorted(at, start)])


def ran_ns(rows: pl.DataFrame) -> int:
    """For how long at least one of the rows runs, ns."""
    start, end = _spans(rows.sort("start"))
    return int(cover(start, end, int(start[0]))[0].sum()) if len(rows) else 0


def before_its_wall(rows: pl.DataFrame) -> pl.Series:
    """For how much of each row's run a row of a step before has not ended yet, ns: a wall begins
    where they all have."""
    end = pl.col("start") + pl.col("duration")
    ends = rows.group_by("step").agg(end.max().alias("reached")).sort("step")
    begins = ends.select("step", begin=pl.col("reached").cum_max().shift(1))
    placed = rows.join(begins, on="step", how="left", maintain_order="left")
    ran = (pl.min_horizontal(end, "begin") - pl.col("start")).clip(lower_bound=0)
    return placed.select(pl.when(pl.col("begin").is_not_null()).then(ran).otherwise(0)).to_series()


def _spans(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["start"].to_numpy(), (rows["start"] + rows["duration"]).to_numpy()
