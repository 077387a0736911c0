"""The causes of idle time of the device, and the host's work in that time: each ns has one cause.

In: the kernels frame and its links. Out: these columns. `idle_*` are the parts of the gap before a
row in ns (they sum to it). `cause` is the CAUSE of most of it (null without a gap). `host_activity`
is the annotation, Python frame or long op that the host was in for half or more of its part of the
gap, `host_activity_ns` how much of that part it covers, and `host_activity_is` INTERRUPTED or
AROUND where that is no reason for the gap. `host_ns` is the time since the launch before by any
thread, without `host_blocked_ns`, the time in calls that copy or wait.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import reduce

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.columns import Mask, is_one_of, is_true, known_ids
from prunescope.analysis.kernels.host_calls import (
    blocking_calls,
    blocking_copies,
    first_of,
    host_time,
    is_op,
)
from prunescope.analysis.ops.kernel_kinds import MATMUL_KINDS, kind_of, op_kind
from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.engine_steps import engine_step
from prunescope.analysis.timeline.first_calls import FAR, UnusualCalls
from prunescope.analysis.timeline.intervals import Spans, cover
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.pauses import BETWEEN_OPS
from prunescope.analysis.timeline.runtime_calls import (
    ALLOCATION,
    COPY,
    SYNC,
    match_names,
    runtime_calls,
)
from prunescope.analysis.trace.collector import NONE, OWN_PREFIX, Ints, unique_ids
from prunescope.analysis.trace.trace_columns import FRAME, Trace
from prunescope.taxonomy.idle_causes import CAUSES
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# Part of a gap (what the launching thread did, or why the gap is not its doing) -> its cause. Parts
# of threads come first, in this order: time that lies in two of them counts for the first.
PARTS = {
    "first_call": "first_call", "memcpy": "memcpy", "copy_launch": "memcpy", "sync": "sync",
    "allocation": "allocator", "computed": "host", "stalled": "host", "launch": "host",
    "op": "host", "collective": "collective", "nothing": "host",
    "blocked": "blocked", "device": "device",
    "replay": "unknown", "unknown": "unknown", "other_step": "other_step",
}  # fmt: skip
_OF_THREADS = tuple(PARTS)[: tuple(PARTS).index("blocked")]
# ns from the end of a launch call: an idle device starts the kernel within this time.
LAUNCHED = 1_000_000
_PRODUCTS = (*MATMUL_KINDS, "attention", "conv")
# ns: an op that launches nothing and takes ten times as long as a dispatch computes on the host.
_COMPUTES = 100_000
_UNKNOWN = ("unknown", "comm")  # kinds of ops that may not compute anything
# Collectives that host threads carry out: those of NCCL run on the device.
_COLLECTIVE = lazy_pattern(r"^(?:gloo|mpi|ucc):")


def add_waits(
    frame: pl.DataFrame, trace: Trace, linked: Linked, unusual: UnusualCalls
) -> pl.DataFrame:
    """Add the columns above.

    A gap is divided in this order. `other_step` is the part in which the device ran what a later
    step had launched ahead.

    If the launch call had not ended when the device ran out of work (the gap starved), the time up
    to its end is what the launching thread did: a first call or compilation (`first_call`), a copy
    call that blocks (`memcpy`) or returns at once (`copy_launch`), a call that waits for the device
    (`sync`), one of the allocator (`allocation`), an op that the host computed itself (`computed`),
    an op or call far above its median (`stalled`), another runtime call (`launch`), another `op`,
    or `nothing` recorded. Of that, what other threads spent in a collective is `collective`, and in
    a first call or in calls of the allocator is theirs too. The time after the end of the call is
    `launch`, or `blocked` where it is longer than any launch takes: its stream waited.

    If the kernel was launched in time, the gap is the `device`'s, or `blocked` where it is that
    long, or where the trace shows that a stream waited. A gap that long within one graph replay is
    `replay`: the trace lacks what ran there, or it is a host node. In such a trace one that long
    before the first event of a replay is `unknown`.

    A gap without a known launch is `unknown`, unless its op ended in time. On a host trace every
    gap is dispatch (`op`), or a `collective` of other threads.
    """
    gap, none = linked.gap, np.zeros_like(linked.gap)
    parts = parts_of_gaps(trace, linked, unusual)
    calls = blocking_calls(trace)
    host_ns = blocked_ns = np.full(len(gap), NONE)
    if trace.on_device:
        host_ns, blocked_ns = host_time(linked, launch_of(trace, linked.event) >= 0, calls)
    late_host = sum((parts[name] for name, cause in PARTS.items() if cause == "host"), none)
    activities, covered, reasons = host_activities(trace, linked, late_host, calls)
    columns = {
        **{f"idle_{name}": ns for name, ns in parts.items()},
        "cause": pl.Series(_main_causes(parts, gap), dtype=pl.String),
        "host_activity": pl.Series(activities, dtype=pl.String),
        "host_activity_ns": covered,
        "host_activity_is": pl.Series(reasons, dtype=pl.String),
        "host_ns": known_ids(host_ns),
        "host_blocked_ns": known_ids(blocked_ns),
    }
    return frame.hstack(pl.DataFrame(columns))


def parts_of_gaps(trace: Trace, linked: Linked, unusual: UnusualCalls) -> dict[str, Ints]:
    """Divide the gap before each row among PARTS, as `add_waits` describes them, ns."""
    gap, none = linked.gap, np.zeros_like(linked.gap)
    parts = dict.fromkeys(PARTS, none)
    if not trace.on_device:
        elsewhere = _collectives(trace)
        parts["collective"] = elsewhere.spent(linked.start) - elsewhere.spent(linked.start - gap)
        parts["op"] = gap - parts["collective"]
        return parts
    launch = launch_of(trace, linked.event)
    late = linked.starved & (launch >= 0) & (gap > 0)
    no_launch = (gap > 0) & (launch < 0) & ~_op_in_time(linked, trace)
    ran = _work_in_gaps(linked, trace)
    other_ns = ran.spent(linked.start) - ran.spent(linked.start - gap)
    idle = gap - other_ns
    threads = _parts_of_threads(linked, trace, launch, late, ran, unusual)
    parts = {**parts, **threads, "other_step": other_ns}
    parts["unknown"] = np.where(no_launch, idle, 0)
    waits = ~(late | no_launch) & (idle > LAUNCHED)
    inside = waits & _continues_replay(linked, launch)
    begins = waits & ~inside & linked.replayed & inside.any()
    parts["replay"] = np.where(inside, idle, 0)
    parts["unknown"] += np.where(begins, idle, 0)
    waited = np.where(late | no_launch | waits, 0, _stream_waits(linked, trace))
    parts["blocked"] = parts["blocked"] + np.where(waits & ~inside & ~begins, idle, waited)
    parts["device"] = np.where(late | no_launch | waits, 0, idle - waited)
    return parts


def dispatch_ns(frame: pl.DataFrame) -> pl.Series:
    """Return the host's part of each gap that a CUDA graph would remove, ns.

    Not counted are the time in which the host computed or stalled, gaps in a data loader, and gaps
    in which the host ran no op and made no call for longer than between two ops of a model.
    """
    spared = ~loads_data(frame) & (frame["idle_nothing"] <= BETWEEN_OPS).to_numpy()
    dispatch = late_host_ns(frame) - frame["idle_computed"] - frame["idle_stalled"]
    return pl.Series(np.where(spared, dispatch, 0))


def loads_data(frame: pl.DataFrame) -> Mask:
    """Return the rows in whose gap the host was in a data loader."""
    activity = frame["host_activity"]
    names = [name for name in activity.unique() if name is not None and _LOADER.search(name)]
    return is_true(is_one_of(activity, names))


def first_call_ns(frame: pl.DataFrame) -> pl.Series:
    """Return the time of each row's gap in which the host made a first call or compiled, ns."""
    return frame["idle_first_call"]


def late_host_ns(frame: pl.DataFrame) -> pl.Series:
    """Return the host's part of each gap, ns."""
    parts = (frame[f"idle_{name}"] for name, cause in PARTS.items() if cause == "host")
    return reduce(operator.add, parts)


def host_late(frame: pl.DataFrame) -> tuple[int, int]:
    """Return the idle time before late launches: in dispatch, and in other host work.

    ns of all steps.
    """
    late, spared = int(late_host_ns(frame).sum()), int(dispatch_ns(frame).sum())
    return spared, late - spared


def cause_sums(frame: pl.DataFrame) -> dict[str, int]:
    """Sum the idle time of a frame by cause, ns of all its steps."""
    sums = dict.fromkeys(CAUSES, 0)
    for name, cause in PARTS.items():
        sums[cause] += int(frame[f"idle_{name}"].sum())
    return sums


def causes_by(frame: pl.DataFrame, *keys: str) -> dict[tuple[str, ...], dict[str, int]]:
    """Sum the idle time by cause for each value of the columns `keys`, ns of all steps.

    Causes without any time are left out.
    """
    parts = frame.group_by(keys).agg(pl.col(f"idle_{name}").sum() for name in PARTS)
    causes: dict[tuple[str, ...], dict[str, int]] = {}
    for row in parts.iter_rows(named=True):
        sums = causes.setdefault(tuple(row[key] for key in keys), {})
        for name, cause in PARTS.items():
            if ns := row[f"idle_{name}"]:
                sums[cause] = sums.get(cause, 0) + ns
    return causes


def _main_causes(parts: dict[str, Ints], gap: Ints) -> list[str | None]:
    """Return the cause of most of each gap; None without a gap."""
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
    """Return the rows whose op, and so their launch, ended before the device ran out of work."""
    end = taken(trace.ops["ts"], linked.op) + taken(trace.ops["dur"], linked.op, absent=0)
    return np.asarray((linked.op >= 0) & (end <= linked.start - linked.gap))


def _continues_replay(linked: Linked, launch: Ints) -> Mask:
    """Return the rows after the first of their graph launch, whatever else ran between."""
    return ~first_of(launch) & linked.replayed & (launch >= 0)


def _work_in_gaps(linked: Linked, trace: Trace) -> Spans:
    """Return the device work inside gaps.

    It belongs to later steps: earlier steps, and work of no step, have ended when a gap begins.
    """
    gaps = Spans.union(linked.start - linked.gap, linked.start)
    begin, end = trace.device["ts"], trace.device["ts"] + trace.device["dur"]
    inside = gaps.spent(end) > gaps.spent(begin)
    return Spans.union(begin[inside], end[inside])


def _stream_waits(linked: Linked, trace: Trace) -> Ints:
    """Return the time of each gap in which a stream waits for an event, ns.

    The device recorded the waits.
    """
    waits = Spans.union(trace.waits["ts"], trace.waits["ts"] + trace.waits["dur"])
    return np.asarray(waits.spent(linked.start) - waits.spent(linked.start - linked.gap))


def _parts_of_threads(
    linked: Linked, trace: Trace, launch: Ints, late: Mask, ran: Spans, unusual: UnusualCalls
) -> dict[str, Ints]:
    """Return the parts of starved gaps that are due to the launching threads and to the streams.

    What the device `ran` in them is left out.
    """
    begin = linked.start - linked.gap
    end = taken(trace.launches["ts"] + trace.launches["dur"], launch)
    until = np.clip(end, begin, linked.start)
    after_call = linked.start - until - (ran.spent(linked.start) - ran.spent(until))
    parts = {name: np.zeros_like(linked.gap) for name in (*_OF_THREADS, "blocked")}
    for thread in unique_ids(linked.thread[late]):
        rows = np.flatnonzero(late & (linked.thread == thread))
        below = ran.spent(until[rows]) - ran.spent(begin[rows])
        for name, spans in _layers(trace, int(thread), linked.op, ran, unusual):
            spent = spans.spent(until[rows]) - spans.spent(begin[rows])
            parts[name][rows] += spent - below
            below = spent
        parts["nothing"][rows] = until[rows] - begin[rows] - below
    waits = late & (after_call > LAUNCHED)
    parts["blocked"][waits] = after_call[waits]
    parts["launch"][late & ~waits] += after_call[late & ~waits]
    return parts


def _layers(
    trace: Trace, thread: int, launching: Ints, ran: Spans, unusual: UnusualCalls
) -> Iterator[tuple[str, Spans]]:
    """Yield the time spans of a thread by activity.

    Each is merged with all entries before it and with `ran`, so that overlapping time counts for
    the first entry only. `launching` holds the ops that are known to have launched device work.
    """
    ops, calls = trace.ops, runtime_calls(trace)
    rows = np.flatnonzero(calls["thread"] == thread)
    called = calls["name"][rows]
    copy, sync, allocates = (match_names(trace, called, p) for p in (COPY, SYNC, ALLOCATION))
    begin, end = calls["ts"][rows], calls["ts"][rows] + calls["dur"][rows]
    inside = np.flatnonzero((ops["thread"] == thread) & is_op(trace)[ops["name"]])
    blocks = blocking_copies(trace, calls)[rows]

    def call_spans(which: Mask) -> Spans:
        return Spans.union(begin[which], end[which])

    def op_spans(rows: Ints) -> Spans:
        return Spans.union(ops["ts"][rows], ops["ts"][rows] + ops["dur"][rows])

    elsewhere = match_names(trace, calls["name"], ALLOCATION)
    layers = (
        ("first_call", unusual.first.thread_spans(thread)),
        ("memcpy", call_spans(blocks)),
        ("copy_launch", call_spans(copy)),
        ("sync", call_spans(sync)),
        ("allocation", call_spans(allocates)),
        ("computed", op_spans(_computed(trace, inside, begin, launching))),
        ("stalled", unusual.stalled.thread_spans(thread)),
        ("launch", call_spans(np.ones(len(rows), bool))),
        ("op", op_spans(inside)),
        # A thread that records nothing may wait for what another one does.
        ("collective", _collectives(trace)),
        ("first_call", Spans.union(unusual.first.begin, unusual.first.end)),
        (
            "allocation",
            Spans.union(calls["ts"][elsewhere], (calls["ts"] + calls["dur"])[elsewhere]),
        ),
    )
    merged = ran
    for name, spans in layers:
        merged = Spans.union(
            np.concatenate([merged.begin, spans.begin]), np.concatenate([merged.end, spans.end])
        )
        yield name, merged


def _collectives(trace: Trace) -> Spans:
    """Return when any thread carries out a collective on the host."""
    notes = trace.annotations
    rows = match_names(trace, notes["name"], _COLLECTIVE)
    return Spans.union(notes["ts"][rows], notes["ts"][rows] + notes["dur"][rows])


def host_collectives(trace: Trace) -> list[str]:
    """Return the names of the collectives that host threads carry out, the longest first."""
    notes = trace.annotations
    rows = match_names(trace, notes["name"], _COLLECTIVE)
    spent = np.bincount(notes["name"][rows], notes["dur"][rows], minlength=1)
    order = np.argsort(-spent, kind="stable")
    return [trace.names[i] for i in order.tolist() if spent[i] > 0]


def _computed(trace: Trace, rows: Ints, calls: Ints, launching: Ints) -> Ints:
    """Return the ops of a thread that the host computed itself.

    Those are matrix products, and other ops that take longer than any dispatch, in which nothing
    was launched (by calls, links and ids) and of which no operand is empty.

    Args:
        trace: The trace.
        rows: The ops of the thread.
        calls: When the thread made runtime calls.
        launching: The ops that are known to have launched device work.
    """
    ops = trace.ops
    names = unique_ids(ops["name"][rows]).tolist()
    products = [i for i in names if op_kind(trace.names[i], None) in _PRODUCTS]
    works = [i for i in names if kind_of(trace.names[i], None, None) not in _UNKNOWN]
    long = np.isin(ops["name"][rows], works) & (ops["dur"][rows] >= _COMPUTES)
    computed = _without(ops, rows[np.isin(ops["name"][rows], products) | long], calls)
    if not len(computed):
        return computed
    empty = [
        i
        for i, call in enumerate(trace.calls)
        if any(isinstance(shape, tuple) and 0 in shape for shape in call.shapes)
    ]
    known = np.isin(rows, launching) | np.isin(ops["external"][rows], _ids(trace))
    computed = computed[~np.isin(ops["call"][computed], empty)]
    return _without(ops, computed, ops["ts"][rows[known]])


def _without(ops: dict[str, Ints], rows: Ints, at: Ints) -> Ints:
    """Return the ops among `rows` within which none of the times `at` lies."""
    at = np.sort(at)
    begin = ops["ts"][rows]
    end = begin + ops["dur"][rows]
    return np.asarray(rows[np.searchsorted(at, begin) == np.searchsorted(at, end)])


def _ids(trace: Trace) -> Ints:
    """Return the external ids of the ops that device events name."""
    ids = unique_ids(trace.device["external"])
    return np.asarray(ids[ids > 0])


LOADER = r"(?i)data_?loader|__next__"  # names of what waits for the next batch
_LOADER = lazy_pattern(LOADER)
Table = dict[str, Ints]
_MOST = 100  # gaps that are looked at, the longest first
_LEAST = 20_000  # ns: shorter gaps lie between two launches of one op
_STEP = lazy_pattern(r"ProfilerStep#\d+$")
_FRAME = lazy_pattern(r"^(?:.*/)?([^/]+)\((\d+)\): (.+)$")
_ADDRESS = lazy_pattern(r" (?:object )?at 0x[0-9a-f]+")
_ENOUGH = 0.5  # of the host's part of a gap
_LONG_OP = 1_000_000  # ns: no op takes so long to dispatch
# Activities of the host that are no reason for a gap. INTERRUPTED: a call that usually takes a
# small part of this time. AROUND: a call that also contains the work after the gap.
INTERRUPTED, AROUND = "interrupted", "around"
_FEW = 3  # calls of a name: a median needs more


def host_activities(
    trace: Trace, linked: Linked, host: Ints, blocks: Table
) -> tuple[list[str | None], Ints, list[str | None]]:
    """Return the host's activity in each gap, the ns that it covers, and whether it is no reason.

    The activity is the innermost annotation, Python frame or long op that covers at least half of
    the host's part of the gap, on the launching thread, else on any. Inside a data loader it is the
    loader, with what is innermost in it unless that is an op. Annotations of steps do not count,
    nor do ops that hold one of `blocks`, nor time in `blocks`. It is None for short gaps, and for
    all but the longest. The third list holds INTERRUPTED or AROUND where one of them is true.

    Args:
        trace: The trace.
        linked: The linked rows.
        host: The host's part of each gap, ns.
        blocks: The calls that copy or wait.
    """
    activities: list[str | None] = [None] * len(host)
    reasons: list[str | None] = [None] * len(host)
    within = np.zeros_like(host)
    order = np.argsort(-host, kind="stable")[:_MOST]
    rows = order[host[order] >= _LEAST]
    if not len(rows):
        return activities, within, reasons
    shown = [_label(name) for name in trace.names]
    begin, end, thread, names = _spans(trace, blocks, shown)
    is_op = np.array(["::" in name for name in names], bool)
    loads = np.array([_LOADER.search(name) is not None for name in names], bool)
    usual: dict[str, float] = {}
    for row in rows.tolist():
        first = linked.start[row] - linked.gap[row]
        shared = np.minimum(end, linked.start[row]) - np.maximum(begin, first)
        near = np.flatnonzero(shared >= _ENOUGH * host[row])
        launching = near[thread[near] == linked.thread[row]]
        spans = launching if len(launching) else near
        loading = spans[loads[spans] & ~is_op[spans]]
        if len(spans):
            inner = int(spans[np.argmin(end[spans] - begin[spans])])
            span = int(loading[np.argmin((end - begin)[loading])]) if len(loading) else inner
            nested = span != inner and not is_op[inner]
            activities[row] = f"{names[span]}: {names[inner]}" if nested else names[span]
            since, until = max(int(begin[span]), first), min(int(end[span]), int(linked.start[row]))
            blocked = _blocked(blocks, int(linked.thread[row]), since, until)
            within[row] = min(int(shared[span]) - blocked, int(host[row]))
            name = names[inner]
            if name not in usual:
                usual[name] = _usual_ns(
                    trace, [i for i, label in enumerate(shown) if label == name]
                )
            if end[inner] - begin[inner] >= max(_LONG_OP, FAR * usual[name]):
                reasons[row] = INTERRUPTED
            elif end[span] > linked.start[row]:
                reasons[row] = AROUND
    return activities, within, reasons


def _usual_ns(trace: Trace, ids: list[int]) -> float:
    """Return the median time of the ops, annotations and frames with one of the names `ids`, ns.

    It is infinite for _FEW or fewer. Frames that are too short to be kept are not among them:
    nothing is known of these.
    """
    tables = (trace.ops, trace.annotations, trace.frames)
    all_ns = np.concatenate([t["dur"][np.isin(t["name"], ids)] for t in tables])
    return float(np.median(all_ns)) if len(all_ns) > _FEW else math.inf


def _blocked(blocks: Table, thread: int, begin: int, end: int) -> int:
    """Return the time of a span in which a thread is in calls that copy or wait, ns."""
    at = blocks["ts"]
    own = (blocks["thread"] == thread) & (at < end) & (at + blocks["dur"] > begin)
    rows = np.flatnonzero(own)[np.argsort(at[own], kind="stable")]
    until = np.minimum(at + blocks["dur"], end)[rows]
    return int(cover(at[rows], until, begin)[0].sum())


def _spans(
    trace: Trace, blocks: Table, shown: list[str | None]
) -> tuple[Ints, Ints, Ints, list[str]]:
    """Return begin, end, thread and name of the annotations, frames and long ops of a trace.

    Older profilers wrote annotations among the ops; they count too. `shown` is the label of each
    name of the trace.
    """
    is_annotation = np.array(["#" in name and "::" not in name for name in trace.names], bool)
    tables = [
        (trace.annotations, np.arange(len(trace.annotations["ts"]))),
        (trace.frames, np.arange(len(trace.frames["ts"]))),
        (
            trace.ops,
            np.flatnonzero(is_annotation[trace.ops["name"]] | _long_ops(trace.ops, blocks)),
        ),
    ]
    tables = [
        (table, rows[[shown[i] is not None for i in table["name"][rows]]] if len(rows) else rows)
        for table, rows in tables
    ]
    begin = np.concatenate([table["ts"][rows] for table, rows in tables])
    end = begin + np.concatenate([table["dur"][rows] for table, rows in tables])
    thread = np.concatenate([table["thread"][rows] for table, rows in tables])
    names = [shown[i] or "" for table, rows in tables for i in table["name"][rows].tolist()]
    return begin, end, thread, names


def _long_ops(ops: Table, blocks: Table) -> NDArray[np.bool_]:
    """Return the ops that the host itself was long in, with no call inside that copies or waits."""
    long = ops["dur"] >= _LONG_OP
    for thread in unique_ids(ops["thread"][long]):
        rows = np.flatnonzero(long & (ops["thread"] == thread))
        at = np.sort(blocks["ts"][blocks["thread"] == thread])
        begin = ops["ts"][rows]
        blocks_inside = np.searchsorted(at, begin + ops["dur"][rows]) > np.searchsorted(at, begin)
        long[rows[blocks_inside]] = False
    return long


def _label(name: str) -> str | None:
    """Return the name to show for a span.

    None for a step, for a frame whose name is left out, and for a collective: that part of a gap is
    not the host's.
    """
    if (
        name == FRAME
        or _STEP.search(name)
        or name.startswith(OWN_PREFIX)
        or engine_step(name) is not None
        or _COLLECTIVE.match(name)
    ):
        return None
    frame = _FRAME.match(name := _ADDRESS.sub("", name))
    return name if frame is None else f"{frame[1]}: {frame[3]}"
