"""The kernels of a trace with their launch, op and step; every ns of a step is covered once.

In: Trace and Windows. Out: `Linked`: one row for each unit of device work (on a CPU trace, for each
host op that does work), with busy and gap ns, so that sum(busy) + sum(gap) + trailing idle = wall
of a step.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from prunescope.analysis.ops.kernel_kinds import is_work_op
from prunescope.analysis.timeline.correlate import (
    StepsOfEvents,
    launch_of,
    op_by_external_id,
    op_of_launch,
    steps_of_events,
    taken,
)
from prunescope.analysis.timeline.intervals import Windows, cover, parents_on_threads
from prunescope.analysis.timeline.launches import count_lost_launches
from prunescope.analysis.timeline.pauses import Pauses, find_pauses
from prunescope.analysis.trace.collector import NONE, OWN_PREFIX, Ints
from prunescope.analysis.trace.trace_columns import Trace

__all__ = ["Linked", "is_graph_launch", "link", "op_of_launch", "taken"]

# Columns of Linked with one value per row that is no index of another row or step.
PER_ROW = (
    "start", "duration", "busy", "gap", "starved", "op", "event", "launched", "thread",
    "replayed",
)  # fmt: skip


class Linked(Struct):
    """Rows in time order, one array per column (int64 ns, -1 absent), and what was left out.

    `op` is the row of the host op, `launched` the host time of the launch (the begin of the op
    where no launch is known). `starved` is set if this row's launch call had not returned when the
    device went idle. `wall`, `trailing_idle` and `between` have one value per step.
    """

    step: Ints
    start: Ints
    duration: Ints
    busy: Ints
    gap: Ints
    starved: NDArray[np.bool_]
    op: Ints
    event: Ints  # row in Trace.device, -1 on a CPU trace
    launched: Ints
    thread: Ints
    wall: Ints
    trailing_idle: Ints
    replayed: NDArray[np.bool_]  # launched by a graph replay
    above: Ints  # row of the work op around a row, -1 at the top and on a device
    # Device idle time while the host waited between steps, by the step that follows.
    between: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    # Left out of the first wall: time in which most likely earlier work ran.
    earlier_work_ns: int = 0
    launch_latency_ns: int | None = None
    launch_latency_busy_ns: int | None = None  # the part in which the device was busy
    # Work of the step inside the launch latency, which no row's busy time holds: run time
    # (ran_ns) and the part that earlier work does not overlap (ns).
    launch_latency_work: dict[str, float] = field(default_factory=dict)
    carry_over: dict[str, float] = field(default_factory=lambda: {"events": 0, "ns": 0})
    late: dict[str, float] = field(default_factory=lambda: {"events": 0, "ns": 0})
    left_out: dict[str, float] = field(default_factory=lambda: {"events": 0, "ns": 0})
    # Launches of kernels for the steps; those whose kernel is not in the trace, and the last
    # ones of these; and, not among them, launches that were captured into a graph.
    launches: dict[str, int] = field(
        default_factory=lambda: {"events": 0, "lost": 0, "at_end": 0, "captured": 0}
    )
    cut: bool = False  # whether the file ends before the trace does

    @property
    def host_runs_ahead(self) -> bool:
        """Whether the host launched most of the later steps before the device was starved."""
        firsts = [np.flatnonzero(self.step == i)[:1] for i in range(1, len(self.wall))]
        late = [bool(self.starved[rows].any()) for rows in firsts]
        return bool(late) and 2 * sum(late) < len(late)


def link(trace: Trace, windows: Windows) -> Linked:
    """Link the rows of all steps of a trace to launches, ops and steps.

    Args:
        trace: The trace; without device events, its host ops stand for its kernels.
        windows: The host windows of its steps.

    Returns:
        The rows of the steps in time order, and counts of what is in no step.
    """
    linked = link_device(trace, windows) if trace.on_device else link_host(trace, windows)
    linked.cut = trace.source.cut
    return linked


def link_device(trace: Trace, windows: Windows) -> Linked:
    """Link the device events of all steps to their launches and ops."""
    device = trace.device
    order = np.lexsort((device["stream"], device["correlation"], -device["dur"], device["ts"]))
    start = device["ts"][order]
    launch = launch_of(trace, order)
    by_op = op_by_external_id(trace, order, launch)
    launched = taken(trace.launches["ts"], launch, absent=0)
    launched = np.where(by_op >= 0, taken(trace.ops["ts"], by_op), launched)
    replayed = _launched_by_graph(trace, launch)
    returned = _returned_by(trace, launch, launched, start)
    is_linked = (launch >= 0) | (by_op >= 0)
    placed = steps_of_events(trace, order, launched, is_linked, windows)
    linked = Linked(
        step=placed.step,
        start=start,
        duration=device["dur"][order],
        busy=np.zeros_like(start),
        gap=np.zeros_like(start),
        starved=np.zeros(len(start), bool),
        op=np.full(len(start), NONE),
        event=order,
        launched=launched,
        thread=np.full(len(start), NONE),
        wall=np.zeros(len(windows), np.int64),
        trailing_idle=np.zeros(len(windows), np.int64),
        replayed=replayed,
        above=np.full(len(start), NONE),
    )
    _count_outside_steps(linked, placed, windows)
    linked.launches = count_lost_launches(trace, windows)
    of_launch = op_of_launch(trace, launch, device["external"][order])
    # The op around a graph launch is not that of its kernels.
    linked.op = np.where((launch >= 0) & ~linked.replayed, of_launch, by_op)
    launching = taken(trace.launches["thread"], launch)
    linked.thread = np.where(by_op >= 0, taken(trace.ops["thread"], by_op), launching)
    begins = _find_step_begins(linked, is_linked, placed.carry_over, trace, windows)
    rows = np.flatnonzero(linked.step < 0)
    outside = start[rows], np.maximum.accumulate(start[rows] + linked.duration[rows])
    begins = _leave_out_pauses(linked, begins, outside, find_pauses(trace, windows))
    for i in range(len(windows)):
        _fill_step(linked, np.flatnonzero(linked.step == i), i, begins[i], outside, returned)
    linked.starved &= is_linked
    keep = linked.step >= 0
    for name in ("step", *PER_ROW, "above"):
        setattr(linked, name, getattr(linked, name)[keep])
    return linked


def _count_outside_steps(linked: Linked, placed: StepsOfEvents, windows: Windows) -> None:
    """Count the events that are in no step: carry-over, late, left out.

    In runs of `prunescope trace`, work before the first step belongs to the discarded step and is
    not counted.
    """
    for name, mask in (("carry_over", placed.carry_over), ("late", placed.late)):
        rows = np.flatnonzero(mask)
        start, end = linked.start[rows], linked.start[rows] + linked.duration[rows]
        ns = int(cover(start, end, int(start[0]))[0].sum()) if len(rows) else 0
        setattr(linked, name, {"events": len(rows), "ns": ns})
    outside = (linked.step < 0) & ~placed.carry_over & ~placed.late
    if windows.source == "prunescope":
        outside &= placed.until >= windows.start[0]
    linked.left_out = {"events": int(outside.sum()), "ns": int(linked.duration[outside].sum())}


def _find_step_begins(
    linked: Linked,
    is_linked: NDArray[np.bool_],
    carry_over: NDArray[np.bool_],
    trace: Trace,
    windows: Windows,
) -> list[int]:
    """Return the begin of each step's wall: the end of the last device event of the step before.

    The first step of our own runs follows one that was discarded. That of a trace without run.json
    starts at its first linked device event after the carry-over; the launch latency before it is
    reported separately.
    """
    begins: list[int] = []
    end = linked.start + linked.duration
    for i in range(len(windows)):
        rows = np.flatnonzero(linked.step == i)
        if not len(rows):
            begins.append(begins[-1] if begins else 0)
            continue
        done = np.flatnonzero((linked.step >= 0) & (linked.step < i))
        if i == 0 and windows.source == "prunescope":
            done = np.flatnonzero(is_linked & (linked.launched < windows.start[0]))
        if len(done):
            begins.append(int(end[done].max()))
            continue
        first = rows[is_linked[rows]] if is_linked[rows].any() else rows
        begins.append(_first_start_after(linked, first, np.flatnonzero(carry_over)))
        if i == 0:
            linked.launch_latency_ns, linked.launch_latency_busy_ns = _launch_latency(
                linked, trace, windows, begins[0]
            )
    return begins


def _leave_out_pauses(
    linked: Linked, begins: list[int], outside: tuple[Ints, Ints], waits: Pauses
) -> list[int]:
    """Move the begins of walls behind the waits of the host between steps.

    What is idle before a wait is the trailing idle time of the step before, and what is idle behind
    it is the next step's. `outside` holds the starts of rows in no step, and how far they reach;
    `waits` are the pauses.
    """
    shifted = list(begins)
    linked.between = np.zeros(len(begins), np.int64)
    for i in np.flatnonzero(waits.end > waits.begin).tolist():
        if not ((linked.step == i).any() and (linked.step == i - 1).any()):
            continue
        at = int(np.searchsorted(outside[0], waits.begin[i]))
        busy_until = max(begins[i], int(outside[1][at - 1]) if at else begins[i])
        until = max(int(waits.begin[i]), busy_until)
        linked.trailing_idle[i - 1] = until - busy_until
        linked.between[i] = max(0, int(waits.end[i]) - until)
        shifted[i] = max(begins[i], int(waits.end[i]))
    return shifted


def _first_start_after(linked: Linked, rows: Ints, carry_over: Ints) -> int:
    """Return the first start of rows after the end of the carry-over, if any of them runs then."""
    end = linked.start + linked.duration
    until = int(end[carry_over].max()) if len(carry_over) else int(linked.start[rows[0]])
    behind = rows[end[rows] > until]
    return max(int(linked.start[behind[0]]), until) if len(behind) else int(linked.start[rows[0]])


def _launch_latency(
    linked: Linked, trace: Trace, windows: Windows, first: int
) -> tuple[int, int] | tuple[None, None]:
    """Measure the launch latency of the first step, and for how much of it the device was busy.

    It lasts from the beginning of the step on the host to `first`, where its wall begins. What the
    step launched itself in that time is stored in `launch_latency_work`.

    Returns:
        Both times in ns; None where the beginning is unknown or later than `first`.
    """
    begin = int(windows.start[0]) if windows.source != "whole" else None
    if begin is None and len(trace.ops["ts"]):
        begin = int(trace.ops["ts"].min())
    if begin is None or first < begin:
        return None, None
    until = np.minimum(linked.start + linked.duration, first)
    rows = np.flatnonzero((linked.start < first) & (until > begin))
    busy, _ = cover(linked.start[rows], until[rows], begin)
    earlier = rows[linked.step[rows] != 0]
    earlier_busy, _ = cover(linked.start[earlier], until[earlier], begin)
    own = rows[linked.step[rows] == 0]
    linked.launch_latency_work = {
        "events": len(own),
        "ns": int(busy.sum() - earlier_busy.sum()),
        "ran_ns": int((until[own] - np.maximum(linked.start[own], begin)).sum()),
    }
    return first - begin, int(busy.sum())


def _returned_by(trace: Trace, launch: Ints, launched: Ints, start: Ints) -> Ints:
    """Return the host time by which each row is known to have been launched.

    It is the end of its launch call, or the start of the first row of the same launch (a graph
    replay) where that came first; it is the begin of the op where no launch is known.
    """
    end = taken(trace.launches["ts"] + trace.launches["dur"], launch, absent=0)
    known = launch >= 0
    first = np.full(len(trace.launches["ts"]), np.iinfo(np.int64).max)
    np.minimum.at(first, launch[known], start[known])
    return np.where(known, np.minimum(end, taken(first, launch, absent=0)), launched)


def _fill_step(
    linked: Linked, rows: Ints, step: int, begin: int, outside: tuple[Ints, Ints], returned: Ints
) -> None:
    """Set busy, gaps and wall of a step.

    A gap begins where the device ran out of work. What events outside of all steps ran before it is
    neither idle time nor the step's work.

    Args:
        linked: The rows of all steps, which are filled.
        rows: The rows of this step.
        step: Its index.
        begin: When its wall begins, ns.
        outside: The starts of rows in no step, and how far they and those before them reach.
        returned: When the launch call of each row had returned.
    """
    if not len(rows):
        return
    start = linked.start[rows]
    end = start + linked.duration[rows]
    linked.busy[rows], gap = cover(start, end, begin)
    reached = np.maximum.accumulate(np.concatenate(([begin], end)))[:-1]
    at = np.searchsorted(outside[0], start, side="left")
    others_reached = np.concatenate(([begin], outside[1]))[at]
    starved_since = np.maximum(reached, others_reached)
    linked.gap[rows] = np.minimum(gap, np.maximum(0, start - starved_since))
    linked.starved[rows] = (returned[rows] >= starved_since) & (linked.gap[rows] > 0)
    linked.wall[step] = (
        int(linked.busy[rows].sum() + linked.gap[rows].sum()) + linked.trailing_idle[step]
    )


def is_graph_launch(name: str) -> bool:
    """Return whether a runtime call launches a graph: cudaGraphLaunch, cuGraphLaunch and others."""
    return "graphlaunch" in name.lower()


def _launched_by_graph(trace: Trace, launch: Ints) -> NDArray[np.bool_]:
    """Mark the rows that a graph replay launched: all rows of one replay share its launch."""
    names = trace.launches["name"]
    graph = np.array([is_graph_launch(name) for name in trace.names], bool)
    if not len(names) or not graph.any():
        return np.zeros(len(launch), bool)
    return np.asarray((launch >= 0) & graph[names[np.maximum(launch, 0)]])


def link_host(trace: Trace, windows: Windows) -> Linked:
    """Link the host ops that do work, which are the kernels of a CPU trace.

    An op's busy time is its duration minus the work ops directly inside it; an outermost op owns
    the gap before it.
    """
    ops = trace.ops
    by_name = np.array([is_work_op(n) and not n.startswith(OWN_PREFIX) for n in trace.names], bool)
    work = np.flatnonzero(by_name[ops["name"]])
    if windows.source == "whole" and len(ops["ts"]):
        first, last = ops["ts"].min(), (ops["ts"] + ops["dur"]).max()
        windows = Windows(np.array([first]), np.array([last]), "whole", windows.names)
    step = windows.step_of(ops["ts"][work])
    outside = step < 0
    # In runs of `prunescope trace`, work before the first step belongs to the discarded step.
    named = outside & ((windows.source != "prunescope") | (ops["ts"][work] >= windows.start[0]))
    left_out: dict[str, float] = {
        "events": int(named.sum()),
        "ns": int(ops["dur"][work[named]].sum()),
    }
    work, step = work[~outside], step[~outside]
    order = np.lexsort((ops["external"][work], -ops["dur"][work], ops["ts"][work]))
    work, step = work[order], step[order]
    start = ops["ts"][work]
    end = np.minimum(start + ops["dur"][work], windows.end[step] if len(step) else start)
    busy, gap, above = np.zeros_like(start), np.zeros_like(start), np.full(len(start), NONE)
    wall = windows.end - windows.start
    trailing_idle = np.zeros(len(windows), np.int64)
    for i in range(len(windows)):
        rows = np.flatnonzero(step == i)
        up = parents_on_threads(ops["thread"][work[rows]], start[rows], end[rows])
        busy[rows], gap[rows], trailing_idle[i] = _host_step(up, start[rows], end[rows], windows, i)
        above[rows] = np.where(up >= 0, rows[np.maximum(up, 0)], NONE)
    return Linked(
        step=step,
        start=start,
        duration=end - start,
        busy=busy,
        gap=gap,
        starved=gap > 0,
        op=work,
        event=np.full(len(work), NONE),
        launched=start,
        thread=ops["thread"][work],
        wall=wall,
        trailing_idle=trailing_idle,
        between=np.zeros(len(windows), np.int64),
        left_out=left_out,
        replayed=np.zeros(len(work), bool),
        above=above,
    )


def _host_step(
    up: Ints, start: Ints, end: Ints, windows: Windows, step: int
) -> tuple[Ints, Ints, int]:
    """Return busy time and gap of the work ops of one step, and its trailing idle time, ns."""
    top = np.flatnonzero(up < 0)
    begin, finish = int(windows.start[step]), int(windows.end[step])
    busy, gap = np.zeros_like(start), np.zeros_like(start)
    covered, gap[top] = cover(start[top], end[top], begin)
    # The part of an outermost op that no other thread's op covers first is a suffix of it.
    floor = np.zeros_like(start)
    floor[top] = end[top] - covered
    length = np.zeros_like(start)
    for i in range(len(start)):  # parents stand before their children
        if up[i] >= 0:
            floor[i] = floor[up[i]]
        length[i] = max(0, int(end[i]) - max(int(start[i]), int(floor[i])))
        busy[i] += length[i]
        if up[i] >= 0:
            busy[up[i]] -= length[i]
    # If ops cross, which no profiler writes, the inner one may end last: that time is idle.
    last = int(end[top].max()) if len(top) else begin
    return busy, gap, finish - max(last, begin)
