"""Findings on host work other than launching ops while the device idles.

That is first calls, the allocator, collectives, and work of its own.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context, largest_sums
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
from prunescope.taxonomy.words import ms, percent, shortened, when

SOME, MUCH = 0.05, 0.25  # of the step: idle time worth a finding, and worth a warning
HOST_COLLECTIVES = "host-collectives"
NAMED = 0.02  # of the step: idle time worth a line
_POOL = 10  # calls a step that free memory: no pool that has grown gives back so much of it
_LINES = 3


def large_share(c: Context, ns: float) -> float | None:
    """Return idle time as a share of the step, None below MUCH and without a device."""
    share = c.idle_share(ns)
    return share if c.kernels.on_device and share >= MUCH else None


def idle_ns(c: Context, cause: str) -> float:
    """Return the idle time of a cause, ns a step."""
    return c.kernels.idle_by_cause[cause] / c.kernels.num_steps


@finding("first-calls", "warning", needs_one_clock=True)
def first_calls(c: Context) -> Found | None:
    """Report that the device idles during first calls or compilation, which no later step holds."""
    on_device = c.kernels.on_device
    ns = c.kernels.host.first_call_ns / c.kernels.num_steps
    share = c.idle_share(ns) if on_device else c.share(ns)
    if share < SOME:
        return None
    which, mean = f"of {c.kernels.num_steps} steps, some are cold", "a mean"
    if c.kernels.num_steps == 1:
        which, mean = "the step is cold", "the"
    return Found(
        severity="warning" if share >= MUCH else "info",
        text=f"{which}: the {'device waits' if on_device else 'host spends'} {c.idle_ms(ns)} "
        f"({percent(share)} of {mean} step) {'for' if on_device else 'in'} "
        "first calls or compilation, which a later step does not make; without them it takes "
        f"{ms(c.step_ns - c.idle_in_step(ns))}",
        evidence=[f"{c.idle_ms(ns)}: {shortened(call)}" for call, ns in c.kernels.host.first_calls],
        change="run a few steps before the profiler starts "
        f"({c.kernels.profiler.recorder.warm}), and compare warm steps only",
        predicted_ns=c.idle_in_step(ns),
    )


@finding("allocator-calls", "warning", needs_one_clock=True)
def allocator_calls(c: Context) -> Found | None:
    """Report that the device idles while the host allocates or frees memory."""
    ns = idle_ns(c, "allocator")
    share = c.idle_share(ns)
    if share < SOME:
        return None
    calls, steps = c.kernels.host.allocations, c.kernels.num_steps
    counts = [f"{count / steps:,.4g} {name}" for name, count in calls.counts.items()]
    why = "the pool of the allocator still grows"
    change = "run a few steps before the profiler starts: a pool that has grown makes no calls"
    if calls.frees_late >= _POOL * steps / 2:
        why = "the caching allocator is off, or has to give its memory back"
        change = (
            "let the caching allocator keep its memory: unset PYTORCH_NO_CUDA_MEMORY_CACHING "
            "(PYTORCH_NO_HIP_MEMORY_CACHING on ROCm), call no torch.cuda.empty_cache() in a step, "
            "and leave memory free"
        )
    return Found(
        severity="warning" if share >= MUCH else "info",
        text=f"the device idles for {percent(share)} of the step while the host allocates or frees "
        f"memory ({', '.join(counts[:_LINES])} a step): {why}",
        evidence=[
            f"{c.idle_ms(ns)} of {c.idle_ms(c.phase.gap_ns)} idle time lie in calls of the "
            "allocator"
        ],
        change=change,
        predicted_ns=c.idle_in_step(ns),
    )


@finding(HOST_COLLECTIVES, "warning")
def host_collectives(c: Context) -> Found | None:
    """Report that the step waits while threads of the host carry out collectives."""
    ns, idle = idle_ns(c, "collective"), c.phase.gap_ns
    share = c.idle_share(ns)
    if share < MUCH:
        return None
    # Gradients can be sent during the rest of the backward pass. Inference with tensor parallelism
    # has nothing to overlap with: each sum of its ranks is needed before the next layer.
    less = (
        "overlap this communication: start collectives while the backward pass still runs "
        "(buckets of gradients), send less"
        if has_backward(c.kernels)
        else "send less (fewer ranks, activations of fewer bits), compute one half of the batch "
        "while the other half is sent"
    )
    return Found(
        text=f"for {percent(share)} of the step "
        f"{'the device idles' if c.kernels.on_device else 'no op runs'} while other threads of the "
        f"host are in {', '.join(c.kernels.host.collectives[:_LINES])}",
        evidence=[f"{c.idle_ms(ns)} of {c.idle_ms(idle)} without work ({percent(ns / idle)})"],
        change=f"{less}, or use a faster backend between the ranks",
    )


def name_late_ranks(collectives: Finding, late: list[str], ns: float) -> Finding:
    """Add to a rank's finding on host collectives that it waits in them for ranks that come late.

    `late`: the names of these ranks, which are to be looked at first; `ns`: the time that the rank
    waits for them, ns a step.
    """
    names = ", ".join(late)
    are, reach = ("is", "reaches") if len(late) == 1 else ("are", "reach")
    return msgspec.structs.replace(
        collectives,
        text=f"{collectives.text}: for {ms(ns)} of that it waits for {names}, which {reach} the "
        "collectives late",
        change=f"find out why {names} {are} late (finding straggler): neither a faster backend nor "
        "collectives that start earlier shorten this wait",
    )


class _Activity(NamedTuple):
    """Host work other than dispatch: the pattern of its name, its description, and what helps."""

    pattern: str
    text: str
    change: str


# The first that matches the name of an annotation, Python frame or op decides.
_ACTIVITIES = (
    _Activity(LOADER, "waits for or prepares data",
              "load and prepare the next batch in other processes while the device works "
              "(DataLoader: num_workers, prefetch_factor, persistent_workers)"),
    _Activity(r"\bgc[:.]|<built-in (?:function|method) collect\b", "collects garbage",
              "collect garbage between steps (gc.disable() or gc.freeze() before them)"),
    _Activity(r"(?i)\block\b|(?:threading|queue|_base)\.py: (?:wait|acquire|join|get|result)",
              "waits for a lock or another thread", "find out which thread holds the lock"),
)  # fmt: skip
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


def _activity(name: str | None) -> _Activity:
    """Return the kind of host work that a name in a trace stands for."""
    kinds = (kind for kind in _ACTIVITIES if re.search(kind.pattern, name or ""))
    return next(kinds, _OTHER)


def _place(name: str | None) -> str:
    return "in work without a name in the trace" if name is None else f"in {shortened(name)}"


@finding("host-work", "warning", needs_one_clock=True)
def host_work(c: Context) -> Found | None:
    """Report that the device idles while the host computes, loads data or does other work."""
    steps = c.kernels.num_steps
    share = large_share(c, c.kernels.late_host[1] / steps)
    if share is None:
        return None
    work = sorted(_host_work(c.kernels.frame), key=lambda part: -part.ns)
    lines = []
    for part in work[:_LINES]:  # named work that does not fill its gaps is shorter than them
        gaps = when(part.shown < part.ns, f", within gaps of {c.idle_ms(part.ns / steps)}")
        lines.append(f"{c.idle_ms(part.shown / steps)} {part.line}{gaps}")
    return Found(
        text=f"the device idles for {percent(share)} of the step while the host "
        f"{work[0].activity.text}: neither smaller kernels nor a CUDA graph shorten that",
        evidence=lines,
        change=work[0].activity.change,
    )


class _Work(NamedTuple):
    """Idle time with one kind of work of the host: `ns` in its gaps, `shown` in the work itself."""

    ns: int
    shown: int
    line: str
    activity: _Activity


def _host_work(frame: pl.DataFrame) -> list[_Work]:
    """Return the host work other than dispatch, ns of all steps.

    What the host computes in a data loader is the loader's.
    """
    work = []
    loads = loads_data(frame)
    parts = {"idle_computed": _COMPUTED, "idle_stalled": _STALLED}
    own = {part: pl.Series(np.where(loads, 0, frame[part])) for part in parts}
    for part, activity in parts.items():
        rows = frame.filter(own[part] > 0)
        if len(rows):
            where = "in ops that the host computed"
            if activity is _STALLED:
                where = f"in ops or calls that usually take far less, in {len(rows):,} gaps"
            ns, ops = int(rows[part].sum()), largest_ops(rows, part)["host_activity"].head(_LINES)
            names = when(bool(len(ops)), f" ({', '.join(map(shortened, ops))})")
            work.append(_Work(ns, ns, f"{where}{names}", activity))
    rows = frame[["host_activity", "host_activity_ns"]].with_columns(
        ns=late_host_ns(frame) - dispatch_ns(frame) - sum(own.values())
    )
    within = pl.min_horizontal("ns", "host_activity_ns").sum().alias("within")
    sums = rows.group_by("host_activity").agg(pl.col("ns").sum(), within).filter(pl.col("ns") > 0)
    for name, ns, inside in sums.sort("ns", "host_activity").iter_rows():
        if name is None:
            work.append(_Work(ns, ns, _place(None), _OTHER))
        else:
            work.append(_Work(ns, inside, f"in {name[:120]}", _activity(name)))
    return work


def largest_ops(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """Sum a column over rows in which the host runs an op, by op; the largest sum comes first."""
    ops = rows.filter(pl.col("host_activity").str.contains("::", literal=True))
    return largest_sums(ops, "host_activity", column=column)


def long_gaps(frame: pl.DataFrame) -> pl.DataFrame | None:
    """Return the longest gap of each step of a host trace that lasts longer than Python needs.

    Column `long` is the host's part of a gap, ns. Returns None where these gaps hold less than half
    of that part of all gaps: then it is made of many gaps, which is dispatch.
    """
    rows = frame.with_columns(long=late_host_ns(frame))
    longest = rows.sort("long", descending=True).unique("step", keep="first", maintain_order=True)
    longest = longest.filter(pl.col("long") > BETWEEN_OPS)
    return longest if 2 * longest["long"].sum() > rows["long"].sum() else None


_WITHIN = (
    "find out what the host did within it: the work behind the gap is of the same call, and "
    "nothing that the trace names in it fills the gap"
)
_OUT_OF_STEP = (
    "look at other calls of that name: where they take microseconds, the host was interrupted in "
    "this one (give the process cores of its own); else shorten it, or move it out of the step"
)


@finding("long-gap", "warning")
def long_gap(c: Context) -> Found | None:
    """Report that on a CPU most of the time between ops is one gap of a step: no dispatch."""
    if c.kernels.on_device or c.kernels.profiler.lacks_device:
        return None
    gaps, steps = long_gaps(c.kernels.frame), c.kernels.num_steps
    if gaps is None or c.idle_share(c.per_step(gaps, "long")) < MUCH:
        return None
    places = gaps.group_by("host_activity").agg(
        pl.col("long").sum(),
        pl.col("name").first(),
        pl.len().alias("count"),
        pl.col("host_activity_is").first().alias("is"),
    )
    places = places.sort("long", "host_activity", descending=[True, False])
    largest = places.row(0, named=True)
    own, every, count = largest["long"], places["long"].sum(), largest["count"]
    place = _place(largest["host_activity"])
    # The advice on the work with the largest part is for its own gaps alone.
    if 2 * own < every:
        own, count, place = every, len(gaps), f"at {len(places)} places, most of it {place}"
    where = "the step no op runs in one gap"
    if steps > 1:
        where = f"a mean step no op runs in one gap a step (in {count} of {steps} steps)"
    is_interrupted = largest["is"] == INTERRUPTED
    why = ", but an interruption: the call usually takes a small part of this"
    return Found(
        text=f"for {percent(c.idle_share(own / steps))} of {where}, {place}: the cause is not "
        f"dispatch{when(is_interrupted, why)}",
        evidence=[
            f"{c.idle_ms(ns / count)} {_place(name)}, before {before[:100]}"
            f"{when(count > 1, f' ({count} times)')}"
            for name, ns, before, count, _ in places.head(_LINES).iter_rows()
        ],
        change=_shorten_gap(c, largest["host_activity"], largest["is"]),
        explains_rows_ns=c.accounted(
            "launch_idle",
            pruned=_long_ns(c.kernels),
            dense=0.0 if c.baseline_kernels is None else _long_ns(c.baseline_kernels),
        ),
    )


def _shorten_gap(c: Context, name: str | None, position: str) -> str:
    """Say how to shorten a gap, by the host work in it and whether that fills the gap."""
    if name is None:
        return c.kernels.profiler.recorder.host
    if position == INTERRUPTED:
        return _STALLED.change
    activity = _activity(name)
    if activity is not _OTHER:
        return activity.change
    return _WITHIN if position == AROUND else _OUT_OF_STEP


def _long_ns(kernels: Kernels) -> float:
    """Return the time in long gaps, ns a step."""
    gaps = long_gaps(kernels.frame)
    return 0.0 if gaps is None else int(gaps["long"].sum()) / kernels.num_steps


def repeated_gaps(frame: pl.DataFrame) -> pl.DataFrame | None:
    """Return the gaps of a host trace that repeat at one place of most layers, in every step.

    A place is in front of the same op of the same role. Each gap is longer than Python needs
    between two ops; column `long` is the host's part of it, ns. Of several places the result is
    that with the most time, and None without one.
    """
    rows = frame.with_columns(long=late_host_ns(frame)).filter(pl.col("layer").is_not_null())
    steps = frame["step"].n_unique()
    everywhere = rows.group_by("role", "name").agg(
        (pl.col("layer").n_unique() * steps).alias("places")
    )
    gaps = rows.filter(pl.col("long") > BETWEEN_OPS)
    places = gaps.group_by("role", "name").agg(
        pl.col("long").sum(),
        pl.struct("layer", "step").n_unique().alias("seen"),
        pl.col("layer").n_unique().alias("layers"),
    )
    places = places.join(everywhere, on=["role", "name"], nulls_equal=True)
    places = places.filter((2 * pl.col("seen") > pl.col("places")) & (pl.col("layers") > 1))
    first = places.sort("long", "role", "name", descending=[True, False, False]).head(1)
    repeated = gaps.join(first, on=["role", "name"], how="semi", nulls_equal=True)
    return repeated if len(repeated) else None


@finding("repeated-gap", "warning")
def repeated_gap(c: Context) -> Found | None:
    """Report that on a CPU a long gap repeats at one place of each layer: no dispatch."""
    if c.kernels.on_device or c.kernels.profiler.lacks_device:
        return None
    gaps, steps = repeated_gaps(c.kernels.frame), c.kernels.num_steps
    if gaps is None or c.idle_share(c.per_step(gaps, "long")) < SOME:
        return None
    total = int(gaps["long"].sum())
    named = gaps.filter(pl.col("host_activity").is_not_null())
    work = largest_sums(named, "host_activity", column="host_activity_ns").rows()
    name = work[0][0] if work else None
    change = c.kernels.profiler.recorder.host
    if work:
        activity = _activity(name)
        change = activity.change
        if activity is _OTHER:
            change = "shorten that call, or move it out of the layers"
    return Found(
        text=f"a gap before {gaps['name'][0][:100]} of {gaps['role'][0]} repeats in "
        f"{gaps['layer'].n_unique()} layers: {c.idle_ms(total / steps)} of a step "
        f"({percent(c.idle_share(total / steps))}), {c.idle_ms(total / len(gaps))} each, "
        f"{_place(name)}",
        evidence=[f"{c.idle_ms(ns / steps)} in {shortened(call)}" for call, ns in work[:_LINES]],
        change=change,
    )
