"""Findings on host work other than launching ops while the device idles: first calls, the
allocator, collectives, work of its own.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import (
    AROUND,
    INTERRUPTED,
    LOADER,
    dispatch_ns,
    late_host_ns,
    loads_data,
)
from prunescope.analysis.kernels.phase_kind import has_backward
from prunescope.analysis.schema.report import Finding
from prunescope.analysis.timeline.pauses import BETWEEN_OPS
from prunescope.taxonomy.words import ms, percent, shortened

SOME, MUCH = 0.05, 0.25  # of the step: idle time worth a finding, and worth a warning
HOST_COLLECTIVES = "host-collectives"
NAMED = 0.02  # of the step: idle time worth a line
_POOL = 10  # calls a step that free memory: no pool of memory gives back so much of it
_LINES = 3


def large_share(c: Context, ns: float) -> float | None:
    """Idle time as a share of the step, None below MUCH and without a device."""
    share = c.idle_share(ns)
    return share if c.kernels.on_device and share >= MUCH else None


def idle_ns(c: Context, cause: str) -> float:
    """Idle time of a cause, ns a step."""
    return c.kernels.idle_by_cause[cause] / c.kernels.num_steps


@finding("first-calls", "warning", needs_one_clock=True)
def first_calls(c: Context) -> Found | None:
    """The device idles during first calls or compilation, which no later step holds."""
    ns = idle_ns(c, "first_call")
    share = c.idle_share(ns)
    if share < SOME:
        return None
    steps = c.kernels.num_steps
    which = "the step is cold" if steps == 1 else f"of {steps} steps, some are cold"
    return Found(
        severity="warning" if share >= MUCH else "info",
        text=f"{which}: the device waits {c.idle_ms(ns)} ({percent(share)} of "
        f"{'the' if steps == 1 else 'a mean'} step) for first calls or compilation, which a later "
        f"step does not make; without them it takes {ms(c.step_ns - c.idle_in_step(ns))}",
        evidence=[
            f"{c.idle_ms(long)}: {shortened(what)}" for what, long in c.kernels.host.first_calls
        ],
        change="run a few steps before the profiler starts "
        f"({c.kernels.profiler.recorder.warm}), and compare warm steps only",
    )


@finding("allocator-calls", "warning", needs_one_clock=True)
def allocator_calls(c: Context) -> Found | None:
    """The device idles while the host allocates or frees memory."""
    ns = idle_ns(c, "allocator")
    share = c.idle_share(ns)
    if share < SOME:
        return None
    calls, steps = c.kernels.host.allocations, c.kernels.num_steps
    counts = [f"{count / steps:,.4g} {name}" for name, count in calls.counts.items()]
    frees = calls.frees >= _POOL * steps
    why = (
        "the caching allocator is off, or has to give its memory back"
        if frees
        else "the pool of the allocator still grows"
    )
    return Found(
        severity="warning" if share >= MUCH else "info",
        text=f"the device idles for {percent(share)} of the step while the host allocates or frees "
        f"memory ({', '.join(counts[:_LINES])} a step): {why}",
        evidence=[
            f"{c.idle_ms(ns)} of {c.idle_ms(c.phase.gap_ns)} idle time lie in calls of the "
            "allocator"
        ],
        change="let the caching allocator keep its memory: unset "
        "PYTORCH_NO_CUDA_MEMORY_CACHING (PYTORCH_NO_HIP_MEMORY_CACHING on ROCm), call no "
        "torch.cuda.empty_cache() in a step, and leave memory free"
        if frees
        else "run a few steps before the profiler starts: a pool that has grown makes no calls",
        predicted_ns=c.idle_in_step(ns) if frees else None,
    )


@finding(HOST_COLLECTIVES, "warning")
def host_collectives(c: Context) -> Found | None:
    """The step waits while threads of the host carry out collectives."""
    ns = idle_ns(c, "collective")
    share = c.idle_share(ns)
    if share < MUCH:
        return None
    idle = c.phase.gap_ns
    names = ", ".join(c.kernels.host.collectives[:_LINES])
    where = "the device idles" if c.kernels.on_device else "no op runs"
    return Found(
        text=f"for {percent(share)} of the step {where} while other threads of the host are in "
        f"{names}",
        evidence=[f"{c.idle_ms(ns)} of {c.idle_ms(idle)} without work ({percent(ns / idle)})"],
        change=f"{_overlap(c)}, or use a faster backend between the ranks",
    )


def _overlap(c: Context) -> str:
    """The work that communication can overlap with: gradients with the rest of the backward pass.
    Tensor parallel inference has none: each sum of its ranks is needed before the next layer."""
    if has_backward(c.kernels):
        return (
            "overlap this communication: start collectives while the backward pass still runs "
            "(buckets of gradients), send less"
        )
    return (
        "send less (fewer ranks, activations of fewer bits), compute one half of the batch while "
        "the other half is sent"
    )


def that_waits(found: Finding, late: list[str], ns: float) -> Finding:
    """The finding on host collectives of a rank that waits `ns` a step in them for the ranks
    `late`: these are to be looked at first."""
    names = ", ".join(late)
    text = (
        f"{found.text}: for {ms(ns)} of that it waits for {names}, "
        f"which reach{'es' * (len(late) == 1)} the collectives late"
    )
    change = (
        f"find out why {names} {'is' if len(late) == 1 else 'are'} late (finding straggler): "
        "neither a faster backend nor collectives that start earlier shorten this wait"
    )
    return msgspec.structs.replace(found, text=text, change=change)


class _Activity(NamedTuple):
    """Host work other than dispatch: the pattern of its name, what it is, and what helps."""

    pattern: str
    text: str
    change: str


# The first that matches the name of an annotation, Python frame or op decides.
_ACTIVITIES = (
    _Activity(
        LOADER,
        "waits for or prepares data",
        "load and prepare the next batch in other processes while the device works "
        "(DataLoader: num_workers, prefetch_factor, persistent_workers)",
    ),
    _Activity(
        r"\bgc[:.]|<built-in (?:function|method) collect\b",
        "collects garbage",
        "collect garbage between steps (gc.disable() or gc.freeze() before them)",
    ),
    _Activity(
        r"(?i)\block\b|(?:threading|queue|_base)\.py: (?:wait|acquire|join|get|result)",
        "waits for a lock or another thread",
        "find out which thread holds the lock",
    ),
)
_OTHER = _Activity(
    "", "does other work than launching ops", "move that work out of the step, or onto the device"
)
_COMPUTED = _Activity(
    "", "computes ops itself", "create and compute those tensors on the device (device='cuda')"
)
_STALLED = _Activity(
    "",
    "stands still in ops and calls that take microseconds otherwise",
    "give the process cores of its own: other processes, a limit of CPU time, a lock or a page "
    "fault stop it; a profiler of the system (perf sched, py-spy) shows which",
)


@finding("host-work", "warning", needs_one_clock=True)
def host_work(c: Context) -> Found | None:
    """The device idles while the host loads data, computes or does anything but launch ops."""
    frame, steps = c.kernels.frame, c.kernels.num_steps
    share = large_share(c, c.kernels.late_host[1] / steps)
    if share is None:
        return None
    work = sorted(_host_work(frame), key=lambda one: -one.ns)
    first = work[0].activity
    return Found(
        text=f"the device idles for {percent(share)} of the step while the host {first.text}: "
        "neither smaller kernels nor a CUDA graph shorten that",
        evidence=[
            f"{c.idle_ms(one.shown / steps)} {one.line}{one.around(c, steps)}"
            for one in work[:_LINES]
        ],
        change=first.change,
    )


def long_gaps(frame: pl.DataFrame) -> pl.DataFrame | None:
    """The longest gap of each step of a host trace, with its host's part `long`, ns; those that
    last longer than Python between two ops. None where they hold less than half of that part of
    all gaps: then it is made of many gaps, which is dispatch."""
    rows = frame.with_columns(long=late_host_ns(frame))
    longest = rows.sort("long", descending=True).unique("step", keep="first", maintain_order=True)
    longest = longest.filter(pl.col("long") > BETWEEN_OPS)
    return longest if 2 * longest["long"].sum() > rows["long"].sum() else None


@finding("long-gap", "warning")
def long_gap(c: Context) -> Found | None:
    """On a CPU, most of the time between ops is one gap of a step: the cause is not dispatch."""
    if c.kernels.on_device or c.kernels.profiler.lacks_device:
        return None
    gaps, steps = long_gaps(c.kernels.frame), c.kernels.num_steps
    if gaps is None or c.idle_share(int(gaps["long"].sum()) / steps) < MUCH:
        return None
    by = gaps.group_by("host_activity").agg(
        pl.col("long").sum(),
        pl.col("name").first(),
        pl.len().alias("count"),
        pl.col("host_activity_is").first().alias("is"),
    )
    by = by.sort("long", "host_activity", descending=[True, False])
    names = by["host_activity"].to_list()
    doing = _activity_of(names[0])
    interrupted = by["is"][0] == INTERRUPTED
    # The advice on the work with the largest part is for its own gaps alone.
    own, every, count, place = by["long"][0], by["long"].sum(), by["count"][0], _place(names[0])
    if 2 * own < every:
        own, count, place = every, len(gaps), f"at {len(by)} places, most of it {place}"
    where = "the step no op runs in one gap"
    if steps > 1:
        where = f"a mean step no op runs in one gap a step (in {count} of {steps} steps)"
    return Found(
        text=f"for {percent(c.idle_share(own / steps))} of {where}, {place}: the cause is not "
        "dispatch"
        + ", but an interruption: the call usually takes a small part of this"
        * interrupted,
        evidence=[
            f"{c.idle_ms(ns / count)} {_place(name)}, before {before[:100]}"
            f"{f' ({count} times)' if count > 1 else ''}"
            for name, ns, before, count, _ in by.head(_LINES).iter_rows()
        ],
        change=c.kernels.profiler.recorder.host
        if names[0] is None
        else _STALLED.change
        if interrupted
        else _WITHIN
        if by["is"][0] == AROUND and doing is _OTHER
        else _OUT_OF_STEP
        if doing is _OTHER
        else doing.change,
        explains_rows_ns=c.accounted(
            "launch_idle",
            pruned=_long_ns(c.kernels),
            dense=0.0 if c.baseline_kernels is None else _long_ns(c.baseline_kernels),
        ),
    )


def _long_ns(kernels: Kernels) -> float:
    """The time in long gaps, ns a step."""
    gaps = long_gaps(kernels.frame)
    return 0.0 if gaps is None else int(gaps["long"].sum()) / kernels.num_steps


def repeated_gaps(frame: pl.DataFrame) -> pl.DataFrame | None:
    """The gaps of a host trace at the one place of a layer, before the same op of the same role,
    that most layers have in every step, with the host's part `long`, ns: each longer than Python
    between two ops. None without one; of several places the one with the most time."""
    rows = frame.with_columns(long=late_host_ns(frame))
    steps = rows["step"].n_unique()
    layers = rows.filter(pl.col("layer").is_not_null()).group_by("role", "name")
    everywhere = layers.agg((pl.col("layer").n_unique() * steps).alias("places"))
    gaps = rows.filter((pl.col("long") > BETWEEN_OPS) & pl.col("layer").is_not_null())
    at = gaps.group_by("role", "name").agg(
        pl.col("long").sum(),
        pl.struct("layer", "step").n_unique().alias("seen"),
        pl.col("layer").n_unique().alias("layers"),
    )
    at = at.join(everywhere, on=["role", "name"], nulls_equal=True)
    at = at.filter((2 * pl.col("seen") > pl.col("places")) & (pl.col("layers") > 1))
    first = at.sort("long", "role", "name", descending=[True, False, False]).head(1)
    found = gaps.join(first, on=["role", "name"], how="semi", nulls_equal=True)
    return found if len(found) else None


@finding("repeated-gap", "warning")
def repeated_gap(c: Context) -> Found | None:
    """On a CPU, a long gap repeats at one place of each layer: the cause is not dispatch."""
    if c.kernels.on_device or c.kernels.profiler.lacks_device:
        return None
    gaps, steps = repeated_gaps(c.kernels.frame), c.kernels.num_steps
    total = 0 if gaps is None else int(gaps["long"].sum())
    if gaps is None or c.idle_share(total / steps) < SOME:
        return None
    known = gaps.filter(pl.col("host_activity").is_not_null())
    by = known.group_by("host_activity").agg(pl.col("host_activity_ns").sum().alias("ns"))
    names = by.sort("ns", "host_activity", descending=[True, False]).rows()
    role, op = gaps["role"][0], gaps["name"][0]
    doing = _activity_of(names[0][0]) if names else _OTHER
    where = f"before {op[:100]} of {role}"
    return Found(
        text=f"a gap {where} repeats in {gaps['layer'].n_unique()} layers: "
        f"{c.idle_ms(total / steps)} of a step ({percent(c.idle_share(total / steps))}), "
        f"{c.idle_ms(total / len(gaps))} each, {_place(names[0][0] if names else None)}",
        evidence=[f"{c.idle_ms(ns / steps)} in {shortened(name)}" for name, ns in names[:_LINES]],
        change=c.kernels.profiler.recorder.host
        if not names
        else "shorten that call, or move it out of the layers"
        if doing is _OTHER
        else doing.change,
    )


_WITHIN = (
    "find out what the host did within it: the work behind the gap is of the same call, and "
    "nothing that the trace names in it fills the gap"
)
_OUT_OF_STEP = (
    "look at other calls of that name: where they take microseconds, the host was interrupted in "
    "this one (give the process cores of its own); else shorten it, or move it out of the step"
)


def _place(name: str | None) -> str:
    return "in work without a name in the trace" if name is None else f"in {shortened(name)}"


class _Work(NamedTuple):
    """Idle time with one kind of work of the host: `ns` in its gaps, `shown` in the work itself."""

    ns: int
    shown: int
    line: str
    activity: _Activity

    def around(self, c: Context, steps: int) -> str:
        """The length of the gaps, where the named work does not fill them."""
        return f", within gaps of {c.idle_ms(self.ns / steps)}" if self.shown < self.ns else ""


def _host_work(frame: pl.DataFrame) -> list[_Work]:
    """The host work other than dispatch, ns of all steps. What it computes in a data loader is
    the loader's."""
    found = []
    loads = loads_data(frame)
    parts = {"idle_computed": _COMPUTED, "idle_stalled": _STALLED}
    own = {part: pl.Series(np.where(loads, 0, frame[part])) for part in parts}
    for part, activity in parts.items():
        rows = frame.filter(own[part] > 0)
        if len(rows):
            ns = int(rows[part].sum())
            line = (
                f"in ops that the host computed{_names(rows, part)}"
                if activity is _COMPUTED
                else f"in ops or calls that usually take far less, in {len(rows):,} gaps"
                f"{_names(rows, part)}"
            )
            found.append(_Work(ns, ns, line, activity))
    rest = late_host_ns(frame) - dispatch_ns(frame) - sum(own.values())
    rows = frame[["host_activity", "host_activity_ns"]].with_columns(ns=rest)
    within = pl.min_horizontal("ns", "host_activity_ns").sum().alias("within")
    by = rows.group_by("host_activity").agg(pl.col("ns").sum(), within)
    for name, ns, inside in by.filter(pl.col("ns") > 0).sort("ns", "host_activity").iter_rows():
        if name is None:
            found.append(_Work(ns, ns, "in work without a name in the trace", _OTHER))
            continue
        found.append(_Work(ns, inside, f"in {name[:120]}", _activity_of(name)))
    return found


def _activity_of(name: str | None) -> _Activity:
    return next((one for one in _ACTIVITIES if re.search(one.pattern, name or "")), _OTHER)


def _names(rows: pl.DataFrame, part: str) -> str:
    """The ops that hold most of a part of the idle time, in brackets; empty without one."""
    ops = rows.filter(pl.col("host_activity").str.contains("::", literal=True))
    by = ops.group_by("host_activity").agg(pl.col(part).sum())
    names = by.sort(part, "host_activity", descending=[True, False])["host_activity"].to_list()
    return f" ({', '.join(map(shortened, names[:_LINES]))})" if names else ""
