"""Why the device idles, and what the host does meanwhile.

In: the kernels frame and its links. Out: columns `cause` of the gap before a row (host, sync,
memcpy, device; null without a gap) and `host_ns` from the launch before to this one (null: none).
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.collect import DEVICE_CATEGORIES
from analysis.link import Linked
from analysis.load import NONE, Ints, Trace

CAUSES = ("host", "sync", "memcpy", "device")
_SYNC = re.compile(r"(?:Device|Stream|Event|Ctx)Synchronize|StreamWaitEvent$")
_MEMCPY = DEVICE_CATEGORIES["gpu_memcpy"]


def add_waits(frame: pl.DataFrame, trace: Trace, linked: Linked) -> pl.DataFrame:
    """The columns above. A gap is the host's where its launch began after the device had run dry:
    `sync` where a call that waits for the device was open then, `memcpy` beside a copy; a launch
    made in time leaves the gap to the `device`. On a host trace every gap is dispatch: `host`.
    """
    gap = linked.gap > 0
    cause = np.where(gap, "device", "").astype(object)
    if trace.on_device:
        cause[linked.dry] = "host"
        copies = _beside_a_copy(frame)
        cause[linked.dry & copies] = "memcpy"
        cause[linked.dry & _in_sync(linked, trace)] = "sync"
    else:
        cause[gap] = "host"
    cause[~gap] = None
    host = _host_time(linked) if trace.on_device else np.full(len(gap), NONE)
    return frame.with_columns(
        cause=pl.Series(cause.tolist(), dtype=pl.String), host_ns=pl.Series(host)
    ).with_columns(host_ns=pl.when(pl.col("host_ns") >= 0).then("host_ns"))


def _beside_a_copy(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Rows that are a copy, or follow one in time."""
    copy = (frame["category"] == _MEMCPY).fill_null(value=False).to_numpy()
    order = np.argsort(frame["start"].to_numpy(), kind="stable")
    before = np.zeros(len(copy), bool)
    before[order[1:]] = copy[order[:-1]]
    return np.asarray(copy | before)


def _in_sync(linked: Linked, trace: Trace) -> NDArray[np.bool_]:
    """Gaps at whose beginning the launching thread was in a call that waits for the device."""
    names = np.array([_SYNC.search(name) is not None for name in trace.names], bool)
    launches = trace.launches
    calls = np.flatnonzero(names[launches["name"]]) if len(launches["name"]) else np.empty(0, int)
    out = np.zeros(len(linked.start), bool)
    dry = linked.start - linked.gap
    for thread in np.unique(launches["thread"][calls]):
        own = calls[launches["thread"][calls] == thread]
        own = own[np.argsort(launches["ts"][own], kind="stable")]
        begin = launches["ts"][own]
        end = np.maximum.accumulate(begin + launches["dur"][own])
        at = np.searchsorted(begin, dry, side="right") - 1
        held = (at >= 0) & (end[np.maximum(at, 0)] >= dry)
        out |= held & (linked.thread == thread)
    return out


def _host_time(linked: Linked) -> Ints:
    """From the launch before on the same thread and in the same step to a row's own; NONE for a
    row without a launch and for the first of a step."""
    out = np.full(len(linked.start), NONE)
    order = np.lexsort((linked.launched, linked.step, linked.thread))
    order = order[linked.thread[order] >= 0]
    same = (linked.thread[order][1:] == linked.thread[order][:-1]) & (
        linked.step[order][1:] == linked.step[order][:-1]
    )
    took = np.diff(linked.launched[order])
    out[order[1:]] = np.where(same, took, NONE)
    return out
