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


def _spans(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["start"].to_numpy(), (rows["start"] + rows["duration"]).to_numpy()
