"""Why the device idles, and what the host does meanwhile: every ns of a gap has one cause.

In: the kernels frame and its links. Out: columns `idle_*`, the parts of the gap before a row in ns
(they sum to it); `cause`, the CAUSE with the most of it (null without a gap); `beside`, what the
host was in (an annotation, a Python frame, a long op), `host_activity_ns` of the host's part of the
gap; `host_ns` since any thread launched before, but for `blocked_ns`, which the threads of the two
launches spent in calls that copy or wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.beside import LOADER, beside
from prunescope.analysis.ops.kind import MATMUL_KINDS, op_kind
from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import NONE, Ints

CAUSES = ("host", "sync", "memcpy", "blocked", "device", "unknown", "other_step")
# What the launching thread did in a gap, or why it does not matter; and whose time that is.
PARTS = {
    "memcpy": "memcpy", "copy_launch": "memcpy", "sync": "sync", "launch": "host",
    "computed": "host", "op": "host", "nothing": "host", "blocked": "blocked", "device": "device",
    "replay": "unknown", "unknown": "unknown", "other_step": "other_step",
}  # fmt: skip
_LAUNCHED = 1_000_000  # ns from the end of a launch, by when an idle device has begun with it
_BETWEEN_OPS = 1_000_000  # ns of Python between two ops: more is other work
_PRODUCTS = (*MATMUL_KINDS, "attention", "conv")
COPY = re.compile(r"[Mm]emcpy")
_PAGEABLE = re.compile(r"Memcpy.*Pageable")
_RETURNS = re.compile(r"Async", re.IGNORECASE)  # a copy call that may return before the copy
SYNC = re.compile(
    r"(?:Device|Stream|Event|Ctx|Context)Synchronize|synchronizeStream"
    r"|^ze\w+Synchronize|^ur(?:QueueFinish|EventWait)$"  # Level Zero and SYCL, on XPUs
)
Mask = NDArray[np.bool_]


def add_waits(frame: pl.DataFrame, trace: Trace, linked: Linked) -> pl.DataFrame:
    """The columns above. Of a gap whose launch began after the device had run out of work, the time
    up to the end of that launch is what the launching thread did then: in a copy call that blocks,
    in one that returns at once (`copy_launch`), in a call that waits for the device, in another
    runtime call (`launch`), in a product that it `computed` itself, in another op, in nothing that
    was recorded. What follows is the launch's own (`launch`), or `held` where no launch takes that
    long: the stream was made to wait. A launch that was made in time leaves the gap to the
    `device`, or to `held` where it is that long; so long a gap within one replay of a graph is
    `replay`: nothing outside holds its kernels apart, and the trace lacks what ran, or a node of
    the host's. In such a trace so long a gap before the first event of a replay is `unknown`: what
    it lacks may have run there. So is one without a known launch, unless its op ended in time.
    First of all, `other_step` is the part in which the device ran what a later step had launched
    ahead: it did not idle then. On a host trace every gap is dispatch (`op`).
    """
    gap, none = linked.gap, np.zeros_like(linked.gap)
    parts = dict.fromkeys(PARTS, none)
    calls = blocking_calls(trace)
    host_ns = blocked_ns = np.full(len(gap), NONE)
    if trace.on_device:
        launch = launch_of(trace, linked.event)
        late = linked.starved & (launch >= 0) & (gap > 0)
        untold = (gap > 0) & (launch < 0) & ~_op_in_time(linked, trace)
        ran = _in_gaps(linked, trace)
        other = ran.spent(linked.start) - ran.spent(linked.start - gap)
        idle = gap - other
        parts = {**parts, **_of_threads(linked, trace, launch, late, ran), "other_step": other}
        parts["unknown"] = np.where(untold, idle, 0)
        waits = ~(late | untold) & (idle > _LAUNCHED)
        inside = waits & _within_replay(linked, launch)
        begins = waits & ~inside & linked.replayed & inside.any()
        parts["replay"] = np.where(inside, idle, 0)
        parts["unknown"] += np.where(begins, idle, 0)
        parts["blocked"] = parts["blocked"] + np.where(waits & ~inside & ~begins, idle, 0)
        parts["device"] = np.where(late | untold | waits, 0, idle)
        host_ns, blocked_ns = _host_time(linked, launch >= 0, calls)
    else:
        parts["op"] = gap
    late_host = sum((parts[name] for name, cause in PARTS.items() if cause == "host"), none)
    places: list[str | None] = [None] * len(gap)
    within = none
    if trace.on_device:
        places, within = beside(trace, linked, late_host, calls)
    return frame.with_columns(
        *(pl.Series(f"idle_{name}", ns) for name, ns in parts.items()),
        cause=pl.Series(_most(parts, gap), dtype=pl.String),
        host_activity=pl.Series(places, dtype=pl.String),
        host_activity_ns=pl.Series(within),
        host_ns=pl.Series(host_ns),
        host_blocked_ns=pl.Series(blocked_ns),
    ).with_columns(
        pl.when(pl.col(name) >= 0).then(name).alias(name) for name in ("host_ns", "host_blocked_ns")
    )


def dispatch() -> pl.Expr:
    """The host's part of a gap that a graph could spare, ns: nothing of those beside a data loader,
    nor of those in which the host ran no op and made no call for longer than between two ops of a
    model; and not what it computed itself."""
    loads = pl.col("host_activity").str.contains(LOADER).fill_null(value=False)
    spared = loads.not_() & (pl.col("idle_nothing") <= _BETWEEN_OPS)
    return pl.when(spared).then(host() - pl.col("idle_computed")).otherwise(0)


def host() -> pl.Expr:
    """The host's part of a gap, ns."""
    return pl.sum_horizontal(f"idle_{name}" for name, cause in PARTS.items() if cause == "host")


def host_late(frame: pl.DataFrame) -> tuple[int, int]:
    """Idle time of a late host, ns of all steps: in dispatch, and in other work."""
    late, spared = frame.select(host().sum(), dispatch().sum().alias("dispatch")).row(0)
    return spared, late - spared


def cause_sums(frame: pl.DataFrame) -> dict[str, int]:
    """Idle time of a frame by cause, ns of all its steps."""
    sums = dict.fromkeys(CAUSES, 0)
    for name, cause in PARTS.items():
        sums[cause] += int(frame[f"idle_{name}"].sum())
    return sums


def _most(parts: dict[str, Ints], gap: Ints) -> list[str | None]:
    """The cause with the most of each gap."""
    sums = {cause: np.zeros_like(gap) for cause in CAUSES}
    for name, cause in PARTS.items():
        sums[cause] = sums[cause] + parts[name]
    if not len(gap):
        return []
    first = np.argmax(np.stack([sums[cause] for cause in CAUSES]), axis=0)
    return [
        CAUSES[i] if ns > 0 else None for i, ns in zip(first.tolist(), gap.tolist(), strict=True)
    ]


def _op_in_time(linked: Linked, trace: Trace) -> Mask:
    """Rows whose op ended before the device ran out of work: so did their launch."""
    end = taken(trace.ops["ts"], linked.op) + taken(trace.ops["dur"], linked.op, absent=0)
    return np.asarray((linked.op >= 0) & (end <= linked.start - linked.gap))


def _within_replay(linked: Linked, launch: Ints) -> Mask:
    """Rows behind the first of their graph launch, whatever else ran between."""
    return ~first_of(launch) & linked.replayed & (launch >= 0)


def first_of(launch: Ints) -> Mask:
    """Rows that are the first of their launch: a graph replay is one launch of many."""
    first = np.zeros(len(launch), bool)
    first[np.unique(launch, return_index=True)[1]] = True
    return first


def _in_gaps(linked: Linked, trace: Trace) -> Spans:
    """What the device ran in gaps. Those of a step begin behind all that is of no step and of the
    steps before, so it is of later ones."""
    gaps = Spans.of(linked.start - linked.gap, linked.start)
    begin, end = trace.device["ts"], trace.device["ts"] + trace.device["dur"]
    inside = gaps.spent(end) > gaps.spent(begin)
    return Spans.of(begin[inside], end[inside])


def _of_threads(
    linked: Linked, trace: Trace, launch: Ints, late: Mask, ran: Spans
) -> dict[str, Ints]:
    """The parts of late gaps that the launching threads and the streams have, less what the device
    `ran` then."""
    dry = linked.start - linked.gap
    end = taken(trace.launches["ts"] + trace.launches["dur"], launch)
    until = np.clip(end, dry, linked.start)
    rest = linked.start - until - (ran.spent(linked.start) - ran.spent(until))
    out = {
        name: np.zeros_like(linked.gap)
        for name in (
            "memcpy",
            "sync",
            "copy_launch",
            "launch",
            "computed",
            "op",
            "nothing",
            "blocked",
        )
    }
    for thread in np.unique(linked.thread[late]):
        rows = np.flatnonzero(late & (linked.thread == thread))
        below = ran.spent(until[rows]) - ran.spent(dry[rows])
        for name, spans in _layers(trace, int(thread), linked.op, ran):
            spent = spans.spent(until[rows]) - spans.spent(dry[rows])
            out[name][rows] += spent - below
            below = spent
        out["nothing"][rows] = until[rows] - dry[rows] - below
    waits = late & (rest > _LAUNCHED)
    out["blocked"][waits] = rest[waits]
    out["launch"][late & ~waits] += rest[late & ~waits]
    return out


def named(trace: Trace, names: Ints, pattern: re.Pattern[str]) -> Mask:
    """Which of the names match, each looked at once."""
    found = np.zeros(len(trace.names), bool)
    for i in np.flatnonzero(np.bincount(names)).tolist():
        found[i] = pattern.search(trace.names[i]) is not None
    return found[names]


def runtime_calls(trace: Trace) -> dict[str, Ints]:
    """All runtime calls: begin, duration, name, thread."""
    return {n: np.concatenate((trace.launches[n], c)) for n, c in trace.other_calls.items()}


def blocking_calls(trace: Trace) -> dict[str, Ints]:
    """Runtime calls that copy, or wait for the device."""
    calls = runtime_calls(trace)
    rows = named(trace, calls["name"], COPY) | named(trace, calls["name"], SYNC)
    return {name: column[rows] for name, column in calls.items()}


def blocking_copies(trace: Trace, calls: dict[str, Ints]) -> Mask:
    """Which of all runtime `calls` are copies that no graph holds: of pageable memory, or by a call
    that does not return before the copy."""
    copy, returns = (named(trace, calls["name"], pattern) for pattern in (COPY, _RETURNS))
    events = np.flatnonzero(named(trace, trace.device["name"], _PAGEABLE))
    of_copy = launch_of(trace, events)
    pageable = np.zeros(len(copy), bool)  # launches come first among the calls
    pageable[of_copy[of_copy >= 0]] = True
    return np.asarray(pageable | copy & ~returns)


def _layers(trace: Trace, thread: int, launching: Ints, ran: Spans) -> list[tuple[str, Spans]]:
    """What a thread was in, each with all that goes before it, `ran` first: an instant inside of
    several counts for the first. `launching`: ops known to have launched something."""
    ops, calls = trace.ops, runtime_calls(trace)
    own = np.flatnonzero(calls["thread"] == thread)
    called = calls["name"][own]
    copy, sync = (named(trace, called, pattern) for pattern in (COPY, SYNC))
    blocks = blocking_copies(trace, calls)[own]
    begin, end = calls["ts"][own], calls["ts"][own] + calls["dur"][own]
    inside = np.flatnonzero((ops["thread"] == thread) & is_op(trace)[ops["name"]])
    products = _computed(trace, inside, begin, launching)

    def joined(called: Mask, rows: Ints) -> Spans:
        """These calls and ops, and what the device ran."""
        at = ops["ts"][rows]
        return Spans.of(
            np.concatenate([ran.begin, begin[called], at]),
            np.concatenate([ran.end, end[called], at + ops["dur"][rows]]),
        )

    none = inside[:0]
    return [
        ("memcpy", joined(blocks, none)),
        ("copy_launch", joined(copy, none)),
        ("sync", joined(copy | sync, none)),
        ("launch", joined(copy | True, none)),
        ("computed", joined(copy | True, products)),
        ("op", joined(copy | True, inside)),
    ]


def _computed(trace: Trace, rows: Ints, calls: Ints, launching: Ints) -> Ints:
    """The products among the ops `rows` of a thread that the host ran itself: nothing was launched
    within, as far as calls, links and ids tell, and they have something to multiply. `calls`: when
    the thread made calls."""
    ops = trace.ops
    names = np.unique(ops["name"][rows]).tolist()
    products = [i for i in names if op_kind(trace.names[i], None) in _PRODUCTS]
    found = _without(ops, rows[np.isin(ops["name"][rows], products)], calls)
    if not len(found):
        return found
    empty = [i for i, call in enumerate(trace.calls) if any(_is_empty(s) for s in call.shapes)]
    known = np.isin(rows, launching) | np.isin(ops["external"][rows], _ids(trace))
    found = found[~np.isin(ops["call"][found], empty)]
    return _without(ops, found, ops["ts"][rows[known]])


def _without(ops: dict[str, Ints], rows: Ints, at: Ints) -> Ints:
    """The ops among `rows` within which none of the times `at` lies."""
    at = np.sort(at)
    begin = ops["ts"][rows]
    end = begin + ops["dur"][rows]
    return np.asarray(rows[np.searchsorted(at, begin) == np.searchsorted(at, end)])


def _is_empty(shape: Any) -> bool:
    return isinstance(shape, tuple) and 0 in shape


def _ids(trace: Trace) -> Ints:
    """Of the ops that device events name."""
    ids = np.unique(trace.device["external"])
    return np.asarray(ids[ids > 0])


def is_op(trace: Trace) -> Mask:
    """Which names are those of ops: profilers before PyTorch 1.12 wrote annotations among them."""
    return np.array(["#" not in name or "::" in name for name in trace.names], bool)


@dataclass(frozen=True)
class Spans:
    """The union of some intervals: disjoint, in order; `before`: the time in those before each."""

    begin: Ints
    end: Ints
    before: Ints

    @classmethod
    def of(cls, begin: Ints, end: Ints) -> Spans:
        """The union of [begin, end)."""
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], np.maximum.accumulate(end[order]) if len(order) else end
        first = np.maximum(begin, np.concatenate((begin[:1], end[:-1])))
        length = np.maximum(end - first, 0)
        return cls(first, first + length, np.concatenate(([0], np.cumsum(length)[:-1])).astype(int))

    def spent(self, ts: Ints) -> Ints:
        """Time in them before each of `ts`."""
        if not len(self.begin):
            return np.zeros(len(ts), np.int64)
        at = np.searchsorted(self.begin, ts, side="right") - 1
        row = np.maximum(at, 0)
        last = np.clip(ts - self.begin[row], 0, self.end[row] - self.begin[row])
        return np.where(at >= 0, self.before[row] + last, 0)


def _host_time(linked: Linked, launched: Mask, calls: dict[str, Ints]) -> tuple[Ints, Ints]:
    """From the launch before in the same step to a row's own, whichever thread made it: one that
    waits for another (the caller of `backward`) does not count that one's time. Of that, apart, the
    time in which a thread of the two launches was in one of `calls`, which copy or wait: it is no
    work of the op, whether or not the call returns at once. NONE for a row without a launch and
    for the first of a step."""
    out, blocked = (np.full(len(linked.start), NONE) for _ in range(2))
    before, after = launches_in_turn(linked, launched)
    threads = np.stack((linked.thread[before], linked.thread[after]), axis=1)
    for pair in np.unique(threads, axis=0):
        rows = (threads == pair).all(axis=1)
        own = np.isin(calls["thread"], pair)
        begin = calls["ts"][own]
        spans = Spans.of(begin, begin + calls["dur"][own])
        since, until = linked.launched[before[rows]], linked.launched[after[rows]]
        blocked[after[rows]] = spans.spent(until) - spans.spent(since)
        out[after[rows]] = until - since - blocked[after[rows]]
    return out, blocked


def launches_in_turn(linked: Linked, launched: Mask) -> tuple[Ints, Ints]:
    """Pairs of the rows `launched`, one after the other in one step, by any thread."""
    order = np.lexsort((linked.launched, linked.step))
    order = order[launched[order]]
    before, after = order[:-1], order[1:]
    same = linked.step[after] == linked.step[before]
    return before[same], after[same]
