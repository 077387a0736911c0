"""Why the device idles, and what the host does meanwhile.

In: the kernels frame and its links. Out: columns `cause` of the gap before a row (host, sync,
memcpy, held, device, unknown; null without a gap) and `host_ns` from the launch before to this one
(null: none).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collect import DEVICE_CATEGORIES
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import NONE, Ints

CAUSES = ("host", "sync", "memcpy", "held", "device", "unknown")
_LAUNCHED = 1_000_000  # ns from the end of a launch, by when an idle device has begun with it
_SYNC = re.compile(r"(?:Device|Stream|Event|Ctx)Synchronize|StreamWaitEvent$")
_COPY = re.compile(r"[Mm]emcpy")
_MEMCPY = DEVICE_CATEGORIES["gpu_memcpy"]


def add_waits(frame: pl.DataFrame, trace: Trace, linked: Linked) -> pl.DataFrame:
    """The columns above. A gap is the host's where its launch began after the device had run dry:
    `sync` where a call that waits for the device was open then, `memcpy` beside a copy, and either
    where the launching thread was in such calls for at least half of the gap. A launch that was
    made in time leaves the gap to the `device`; `held`: made too late, but long before the kernel
    began, which waited for another stream. Where no launch is known, the cause is `unknown`, unless
    the op began too late or ended in time. On a host trace every gap is dispatch: `host`.
    """
    gap = linked.gap > 0
    cause = np.where(gap, "device", "").astype(object)
    if trace.on_device:
        launch = launch_of(trace, linked.event)
        launched = launch >= 0
        cause[~launched & ~_op_in_time(linked, trace)] = "unknown"
        cause[linked.dry] = "host"
        copies = _beside_a_copy(frame) | _mostly_in(linked, trace, _COPY)
        cause[linked.dry & copies] = "memcpy"
        waits = _in_sync(linked, trace) | _mostly_in(linked, trace, _SYNC)
        cause[linked.dry & waits] = "sync"
        cause[linked.dry & _held(linked, trace, launch)] = "held"
    else:
        cause[gap] = "host"
    cause[~gap] = None
    host = _host_time(linked, launched) if trace.on_device else np.full(len(gap), NONE)
    return frame.with_columns(
        cause=pl.Series(cause.tolist(), dtype=pl.String), host_ns=pl.Series(host)
    ).with_columns(host_ns=pl.when(pl.col("host_ns") >= 0).then("host_ns"))


def _held(linked: Linked, trace: Trace, launch: Ints) -> NDArray[np.bool_]:
    """Rows that began so long after their launch had ended that no launch takes that long, and most
    of the gap: the stream was made to wait."""
    end = taken(trace.launches["ts"] + trace.launches["dur"], launch)
    held = np.where(launch >= 0, linked.start - end, 0)
    return np.asarray((held > _LAUNCHED) & (2 * held > linked.gap) & (linked.gap > 0))


def _op_in_time(linked: Linked, trace: Trace) -> NDArray[np.bool_]:
    """Rows whose op ended before the device ran dry: so did their launch."""
    end = taken(trace.ops["ts"], linked.op) + taken(trace.ops["dur"], linked.op, absent=0)
    return np.asarray((linked.op >= 0) & (end <= linked.start - linked.gap))


def _beside_a_copy(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Rows that are a copy, or follow one in time."""
    copy = (frame["category"] == _MEMCPY).fill_null(value=False).to_numpy()
    order = np.argsort(frame["start"].to_numpy(), kind="stable")
    before = np.zeros(len(copy), bool)
    before[order[1:]] = copy[order[:-1]]
    return np.asarray(copy | before)


def _calls_of_threads(trace: Trace, pattern: re.Pattern[str]) -> Iterator[tuple[int, Ints, Ints]]:
    """Runtime calls of such a name: each thread with their starts and ends, in order of start; a
    call that lies in an earlier one ends with it."""
    launches = trace.launches
    names = np.array([pattern.search(name) is not None for name in trace.names], bool)
    calls = np.flatnonzero(names[launches["name"]]) if len(launches["name"]) else np.empty(0, int)
    for thread in np.unique(launches["thread"][calls]):
        own = calls[launches["thread"][calls] == thread]
        own = own[np.argsort(launches["ts"][own], kind="stable")]
        begin = launches["ts"][own]
        yield int(thread), begin, np.maximum.accumulate(begin + launches["dur"][own])


def _in_sync(linked: Linked, trace: Trace) -> NDArray[np.bool_]:
    """Gaps at whose beginning the launching thread was in a call that waits for the device."""
    out = np.zeros(len(linked.start), bool)
    dry = linked.start - linked.gap
    for thread, begin, end in _calls_of_threads(trace, _SYNC):
        at = np.searchsorted(begin, dry, side="right") - 1
        held = (at >= 0) & (end[np.maximum(at, 0)] >= dry)
        out |= held & (linked.thread == thread)
    return out


def _mostly_in(linked: Linked, trace: Trace, pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """Gaps of which the launching thread spent at least half in calls of such a name."""
    out = np.zeros(len(linked.start), bool)
    dry = linked.start - linked.gap
    for thread, begin, end in _calls_of_threads(trace, pattern):
        spent = _spent(linked.start, begin, end) - _spent(dry, begin, end)
        out |= (2 * spent >= linked.gap) & (linked.gap > 0) & (linked.thread == thread)
    return out


def _spent(before: Ints, begin: Ints, end: Ints) -> Ints:
    """Time in the calls (begin, end) before each time."""
    first = np.maximum(begin, np.concatenate(([begin[0]], end[:-1])))  # where none was open yet
    whole = np.concatenate(([0], np.cumsum(np.maximum(end - first, 0))))
    at = np.searchsorted(begin, before, side="right") - 1
    row = np.maximum(at, 0)
    last = np.clip(before - first[row], 0, np.maximum(end[row] - first[row], 0))
    return np.where(at >= 0, whole[row] + last, 0)


def _host_time(linked: Linked, launched: NDArray[np.bool_]) -> Ints:
    """From the launch before on the same thread and in the same step to a row's own; NONE for a
    row without a launch and for the first of a step."""
    out = np.full(len(linked.start), NONE)
    order = np.lexsort((linked.launched, linked.step, linked.thread))
    order = order[launched[order]]
    same = (linked.thread[order][1:] == linked.thread[order][:-1]) & (
        linked.step[order][1:] == linked.step[order][:-1]
    )
    took = np.diff(linked.launched[order])
    out[order[1:]] = np.where(same, took, NONE)
    return out
