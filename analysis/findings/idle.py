"""Steps that differ, clocks that differ, and why the device idles.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.host import MUCH, NAMED, SOME, idle_ns, large_share
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.idle import dispatch_ns
from prunescope.analysis.schema.report import (
    CLOCK_SKEW,
)
from prunescope.analysis.verdict import caveats
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import known
from prunescope.taxonomy.words import ms, percent, shortened

_MOST = 0.4  # of the step
_MOST_LIKELY = (
    "although the next kernel had been launched: most likely work ran that was launched before the "
    "profiler started"
)


@finding("unequal-steps", "warning")
def unequal_steps(c: Context) -> Found | None:
    """The steps do not all launch the same number of kernels."""
    lines = []
    for name, kernels in (("dense", c.baseline_kernels), ("pruned", c.kernels)):
        if kernels is not None and caveats.unequal_steps(kernels) is not None:
            counts = ", ".join(map(str, kernels.kernels_per_step))
            side = f"{name}: " if c.baseline is not None else ""
            lines.append(f"{side}{counts} kernels in steps 0 to {kernels.num_steps - 1}")
    if not lines:
        return None
    return Found(
        text="the steps have different numbers of kernels: means over steps mix different work",
        evidence=lines,
        change="profile more steps: each step decides anew what runs"
        if any(one.is_dynamic for one in known(c.phase.family.ids if c.phase.family else ()))
        else "warm up longer, or keep only steps of one kind (--phase-pattern)",
    )


@finding(CLOCK_SKEW, "warning")
def clock_skew(c: Context) -> Found | None:
    """Kernels start before they are launched: the clocks of host and device differ."""
    apart = c.kernels.profiler.clock_skew
    if apart is None:
        return None
    return Found(
        text="host and device clocks are skewed: causes of idle time and launch delays are "
        "not reliable",
        evidence=[sentence(apart.seen)],
        change="trace again before acting on causes of idle time; kernel times and the total idle "
        "time are reliable",
        predicted_ns=None,
    )


@finding("launch-bound", "critical", needs_valid_times=True, needs_one_clock=True)
def launch_bound(c: Context) -> Found | None:
    """Launch-bound: the device idles while the host prepares the next launch."""
    late, others = c.kernels.late_host
    phase, steps = c.phase, c.kernels.num_steps
    spared, other = late / steps, others / steps
    idle = phase.gap_ns - int(c.kernels.frame["idle_other_step"].sum()) / steps
    share = large_share(c, spared)
    if share is None:
        return None
    stacks = c.kernels.profiler.python_calls
    copies = int(c.kernels.frame["idle_copy_launch"].sum()) / steps
    launches = spared + idle_ns(c, "device") + copies
    return Found(
        severity="critical" if share > _MOST and not stacks else "warning",
        text=f"launch-bound: the device waits for a late host for {percent(share)} of the step "
        f"(it idles for {percent(c.idle_share(idle))}); smaller kernels do not shorten that",
        evidence=[
            *[_stacks(stacks)] * bool(stacks),
            f"in {c.idle_ms(spared)} of {c.idle_ms(idle)} idle time the host ran ops or calls (or "
            "nothing, for less than 1 ms) before a launch that it began after the device had "
            "finished all work",
            *_longest(c),
            *[
                f"in another {c.idle_ms(other)} it loaded data, computed ops itself, stood still, "
                "or did other work than dispatch"
            ]
            * bool(other),
        ],
        change=_fewer_launches(c),
        predicted_ns=c.idle_in_step(spared if c.kernels.is_replay else launches),
    )


def _longest(c: Context) -> list[str]:
    """The ops with the most late dispatch, where they take at least NAMED of the step."""
    rows = c.kernels.frame[["host_activity", "host_activity_ns"]]
    rows = rows.with_columns(dispatch=dispatch_ns(c.kernels.frame))
    ops = rows.filter(pl.col("host_activity").str.contains("::", literal=True))
    spared = pl.min_horizontal("dispatch", "host_activity_ns")
    by = ops.group_by("host_activity").agg(spared.sum().alias("ns"))
    by = by.sort("ns", "host_activity", descending=[True, False]).head(2)
    least = NAMED * c.kernels.wall
    steps = c.kernels.num_steps
    return [
        f"{c.idle_ms(ns / steps)} of it in {shortened(n)}"
        for n, ns in by.iter_rows()
        if ns >= least
    ]


def _stacks(calls: int) -> str:
    return (
        f"the profiler recorded {calls:,} calls of Python (with_stack), which slows the host: "
        "without stacks the device waits less"
    )


def _fewer_launches(c: Context) -> str:
    if c.kernels.is_replay:
        return (
            "shorten the host's work between two replays (the step is a CUDA graph already), or "
            "batch more"
        )
    how = (
        "trace --mode graph"
        if c.side.run is not None
        else "torch.cuda.graph, or torch.compile(mode='reduce-overhead')"
    )
    stops = c.kernels.host.graph_blockers
    first = f", once the {stops} of a step are removed: no graph can hold them" if stops else ""
    if c.kernels.frame["idle_computed"].sum() >= NAMED * c.kernels.wall:
        first = f", once the ops that the host computes run on the device{first}"
    return f"capture the step in a CUDA graph ({how}){first}, or batch more"


@finding("late-first-launch", "warning", needs_one_clock=True)
def late_first_launch(c: Context) -> Found | None:
    """The host works long before the first device event; no step's wall time includes this."""
    linked = c.kernels.linked
    if c.kernels.windows.source == "whole" or linked.launch_latency_ns is None:
        return None
    steps = c.kernels.num_steps
    busy = linked.launch_latency_busy_ns or 0
    idle = c.idle_in_step(linked.launch_latency_ns - busy)
    whole = c.step_ns + (c.in_step(busy) + idle) / steps
    if not c.kernels.on_device or idle < SOME * whole:
        return None
    if linked.host_runs_ahead:
        return _latency_of_first_step(c, idle)
    has_work = bool(linked.launch_latency_work.get("events"))
    first = "wall time" if has_work else "first event on the device"
    begins = "the step begins" if steps == 1 else f"the first of {steps} steps begins"
    return Found(
        severity="warning" if idle >= MUCH * whole else "info",
        text=f"{begins} with {ms(idle)} on the host in which the device runs nothing "
        f"({_share_of_latency(idle, whole, steps)}), which its wall time does not contain: with it "
        f"{'the' if steps == 1 else 'a mean'} step takes {ms(whole)}, of which the device is "
        f"busy for {percent(c.in_step(c.phase.busy_ns) / whole)}",
        evidence=[
            f"the step's annotation begins {c.idle_ms(linked.launch_latency_ns)} before its {first}"
        ],
        change="find out what the host does before the first kernel (data, preprocessing, the "
        "first call of a kernel)"
        + ", or profile several steps: the wall time of each but the first contains it"
        * (steps == 1),
    )


def _latency_of_first_step(c: Context, idle: float) -> Found:
    """The finding where later steps do not wait: the host launches each while the device still runs
    the one before."""
    return Found(
        severity="info",
        text=f"the first of {c.kernels.num_steps} steps begins with {ms(idle)} on the host in "
        "which the device runs nothing; the host launches the steps after it before the device "
        f"has finished the one before, so that no later step waits: a step takes "
        f"{ms(c.step_ns)}",
        evidence=[
            "the annotation of the first step begins "
            f"{c.idle_ms(c.kernels.linked.launch_latency_ns or 0)} before its first event on the "
            "device"
        ],
        change=None,
    )


def _share_of_latency(idle: float, whole: float, steps: int) -> str:
    """Launch latency as a share of all steps including it; `whole`: mean ns of a step with it."""
    if steps == 1:
        return f"{percent(idle / whole)} of the step including it"
    return f"{percent(idle / (steps * whole), 1)} of all steps including it"


@finding("host-waits", "warning", needs_one_clock=True)
def host_waits(c: Context) -> Found | None:
    """The device idles while the host copies data, or waits for the device."""
    copies, waits = idle_ns(c, "memcpy"), idle_ns(c, "sync")
    share = large_share(c, copies + waits)
    if share is None:
        return None
    parts = [f"copy calls ({c.idle_ms(copies)})"] * bool(copies)
    parts += [f"calls that wait for the device ({c.idle_ms(waits)})"] * bool(waits)
    return Found(
        text=f"the device idles for {percent(share)} of the step while the host is in "
        f"{' and '.join(parts)}: neither smaller kernels nor a CUDA graph shorten that",
        evidence=_largest(c, "memcpy", "sync"),
        change="keep data on the device (no .item(), .cpu() or synchronise in a step), and copy "
        "from pinned memory with non_blocking=True",
    )


@finding("earlier-work", "warning", needs_one_clock=True)
def earlier_work(c: Context) -> Found | None:
    """The trace begins while the device runs work that was launched before the profiler started."""
    held, dense = c.phase.earlier_work_ns, c.phase.baseline
    share = large_share(c, held)
    if share is None:
        return _earlier_work_of_dense(c)
    rest = c.step_ns - c.idle_in_step(held)
    evidence = [
        f"{c.idle_ms(held)} before the first kernel of its stream, which was launched before "
        "this time or soon after its start"
    ]
    if dense is not None and dense.earlier_work_ns:
        evidence.append(f"{ms(dense.earlier_work_ns)} of the recorded dense step likewise")
    return Found(
        text=f"the trace shows nothing on the device for {percent(share)} of the step, at its very "
        f"beginning, {_MOST_LIKELY}; without this time a step takes {ms(rest)}, of "
        f"which the device is busy for {percent(c.in_step(c.phase.busy_ns) / rest)}",
        evidence=evidence,
        change=_warm_start(c),
    )


def _earlier_work_of_dense(c: Context) -> Found | None:
    """The finding where only the dense trace begins during earlier work."""
    dense = c.phase.baseline
    if dense is None or dense.earlier_work_ns < MUCH * dense.wall_ns:
        return None
    return Found(
        text="the dense trace shows nothing on the device for "
        f"{percent(dense.earlier_work_ns / dense.wall_ns)} of the step, at its very beginning, "
        f"{_MOST_LIKELY}; without this time a dense step takes "
        f"{ms(dense.wall_ns - dense.earlier_work_ns)}",
        evidence=[f"{ms(dense.earlier_work_ns)} before the first kernel of its stream"],
        change=_warm_start(c),
    )


def _warm_start(c: Context) -> str:
    return (
        "synchronise before the profiler starts, or skip its first step "
        f"({c.kernels.profiler.recorder.warm})"
    )


@finding("stream-blocked", "warning", needs_one_clock=True)
def stream_blocked(c: Context) -> Found | None:
    """The device idles although the next kernel had been launched: its stream is blocked."""
    share = large_share(c, idle_ns(c, "blocked") - c.phase.earlier_work_ns)
    if share is None:
        return None
    elsewhere = ", as it does within replays of graphs" * (graph_idle(c) is not None)
    return Found(
        text=f"the device idles for {percent(share)} of the step although the next kernel had been "
        "launched before: its stream waits for another one or for an event, or the trace "
        f"lacks what ran meanwhile{elsewhere}",
        evidence=_largest(c, "blocked"),
        change="find out what the stream waits for (a stream, a copy, another rank), and compare "
        "steps without it",
    )


@finding("graph-idle", "warning")
def graph_idle(c: Context) -> Found | None:
    """Replays of CUDA graphs idle between their own kernels: the trace lacks kernels."""
    frame, steps = c.kernels.frame, c.kernels.num_steps
    gaps = frame["idle_replay"].filter(frame["idle_replay"] > 0).to_list()
    ns = sum(gaps) / steps
    if ns < NAMED * c.phase.wall_ns or not ns:
        return None
    before = int(frame["idle_unknown"].filter(pl.Series(c.kernels.linked.replayed)).sum()) / steps
    return Found(
        text=f"replays of CUDA graphs idle for {c.idle_ms(ns)} of the step "
        f"({percent(c.idle_share(ns))}) between their own kernels: the trace lacks kernels "
        "that ran there, or the graph contains work of the host; busy time and shares by kind are "
        "lower bounds",
        evidence=[
            f"{len(gaps) / steps:g} gaps of more than 1 ms a step; the longest is "
            f"{c.idle_ms(max(gaps))}",
            *[
                f"another {c.idle_ms(before)} before the first events of replays that had been "
                "launched: a stream waited, or the trace lacks kernels there too"
            ]
            * bool(before),
        ],
        change="trace the step without graphs to see every kernel, and compare the kernels of both",
    )


def _largest(c: Context, *causes: str) -> list[str]:
    """The longest gaps of these causes, by the kernel that ended them."""
    rows = c.kernels.frame.filter(pl.col("cause").is_in(causes))
    sums = rows.group_by("name").agg((pl.col("gap") - pl.col("idle_other_step")).sum(), pl.len())
    sums = sums.sort(["gap", "name"], descending=[True, False]).head(3)
    steps = c.kernels.num_steps
    return [
        f"{c.idle_ms(gap / steps)} in {count / steps:g} gap{'s' * (count != steps)} before "
        f"{shortened(name or '?')}"
        for name, gap, count in sums.iter_rows()
    ]
