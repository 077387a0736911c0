"""Steps that differ, clocks that differ, and why the device idles.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.findings.context import Context, enumerate_words
from prunescope.analysis.findings.host import MUCH, NAMED, SOME, idle_ns, large_share, largest_ops
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.idle import dispatch_ns
from prunescope.analysis.schema.report import CLOCK_SKEW
from prunescope.analysis.verdict import caveats
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import known
from prunescope.taxonomy.words import ms, numbers_in_words, percent, plural, shortened, when

_MOST = 0.4  # of the step
_LEAST_STEPS = 3  # the median of two steps does not show which is odd
_NAMED_STEPS = 4  # odd steps with a line of their own
# A step is odd where it differs from the median step by more than the first share of it, and by
# more than the second times the median of all such differences.
_ODD, _USUAL = 0.25, 5


@finding("unequal-steps", "warning")
def unequal_steps(c: Context) -> Found | None:
    """Report that the steps do not all launch the same number of kernels."""
    lines = []
    for label, side in c.sides:
        if caveats.unequal_steps(side.kernels) is not None:
            counts = numbers_in_words(side.kernels.kernels_per_step)
            lines.append(f"{label}{counts} kernels in steps 0 to {side.kernels.num_steps - 1}")
    if not lines:
        return None
    families = known(c.phase.family.ids if c.phase.family else ())
    return Found(
        text="the steps have different numbers of kernels: means over steps mix different work",
        evidence=lines,
        change="profile more steps: each step decides anew what runs"
        if any(family.is_dynamic for family in families)
        else "warm up longer, or keep only steps of one kind (--phase-pattern)",
    )


@finding(CLOCK_SKEW, "warning")
def clock_skew(c: Context) -> Found | None:
    """Report that kernels start before they are launched: host and device clocks differ."""
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
    """Report that the step is launch-bound: the device waits for the host's next launch."""
    late, others = (ns / c.kernels.num_steps for ns in c.kernels.late_host)
    share = large_share(c, late)
    if share is None:
        return None
    idle = c.phase.gap_ns - c.per_step(c.kernels.frame, "idle_other_step")
    launches = late + idle_ns(c, "device") + c.per_step(c.kernels.frame, "idle_copy_launch")
    lines = [
        f"in {c.idle_ms(late)} of {c.idle_ms(idle)} idle time the host ran ops or calls (or "
        "nothing, for less than 1 ms) before a launch that it began after the device had "
        "finished all work",
        *_latest_ops(c),
    ]
    calls = c.kernels.profiler.python_calls
    if calls:
        lines.insert(
            0,
            f"the profiler recorded {calls:,} calls of Python (with_stack), which slows the host: "
            "without stacks the device waits less",
        )
    if others:
        lines.append(
            f"in another {c.idle_ms(others)} it loaded data, computed ops itself, stood still, "
            "or did other work than dispatch"
        )
    change, before = _launch_less_often(c)
    return Found(
        severity="critical" if share > _MOST and not calls else "warning",
        text=f"launch-bound: the device waits for a late host for {percent(share)} of the step "
        f"(it idles for {percent(c.idle_share(idle))}); smaller kernels do not shorten that",
        evidence=lines,
        change=change,
        also=before,
        predicted_ns=c.idle_in_step(late if c.kernels.is_replay else launches),
    )


def _latest_ops(c: Context) -> list[str]:
    """Name the two ops with the most late dispatch, where it is at least NAMED of the step."""
    rows = c.kernels.frame[["host_activity", "host_activity_ns"]]
    rows = rows.with_columns(dispatch=dispatch_ns(c.kernels.frame))
    rows = rows.with_columns(ns=pl.min_horizontal("dispatch", "host_activity_ns"))
    return [
        f"{c.idle_ms(ns / c.kernels.num_steps)} of it in {shortened(op)}"
        for op, ns in largest_ops(rows, "ns").head(2).iter_rows()
        if ns >= NAMED * c.kernels.wall
    ]


def _launch_less_often(c: Context) -> tuple[str, list[str]]:
    """Say how to launch less often: a CUDA graph, and what to remove before it is captured."""
    if c.kernels.is_replay:
        return (
            "shorten the host's work between two replays (the step is a CUDA graph already), or "
            "batch more"
        ), []
    how = "torch.cuda.graph, or torch.compile(mode='reduce-overhead')"
    if c.side.run is not None:
        how = "trace --mode graph"
    in_the_way = []
    if c.kernels.frame["idle_computed"].sum() >= NAMED * c.kernels.wall:
        in_the_way.append("the ops that the host computes")
    if blockers := c.kernels.host.graph_blockers:
        in_the_way.append(f"the {blockers} of a step, which no graph can hold")
    before = [f"first remove {enumerate_words(in_the_way)}"] if in_the_way else []
    return f"capture the step in a CUDA graph ({how}), or batch more", before


@finding("late-first-launch", "warning", needs_one_clock=True)
def late_first_launch(c: Context) -> Found | None:
    """Report that the host works long before the first device event, outside of any step's wall."""
    linked, steps = c.kernels.linked, c.kernels.num_steps
    latency = linked.launch_latency_ns
    if c.kernels.windows.source == "whole" or latency is None or not c.kernels.on_device:
        return None
    busy = linked.launch_latency_busy_ns or 0
    idle = c.idle_in_step(latency - busy)
    step = c.step_ns + (c.scale_to_step(busy) + idle) / steps
    if idle < SOME * step:
        return None
    waits = f"with {ms(idle)} on the host in which the device runs nothing"
    if linked.host_runs_ahead:
        return Found(
            severity="info",
            text=f"the first of {steps} steps begins {waits}; the host launches the steps after it "
            "before the device has finished the one before, so that no later step waits: a step "
            f"takes {ms(c.step_ns)}",
            evidence=[
                f"the annotation of the first step begins {c.idle_ms(latency)} before its first "
                "event on the device"
            ],
        )
    begins, mean = f"the first of {steps} steps begins", "a mean step"
    share = f"{percent(idle / (steps * step), 1)} of all steps including it"
    change = (
        "find out what the host does before the first kernel (data, preprocessing, the first call "
        "of a kernel)"
    )
    if steps == 1:
        begins, mean = "the step begins", "the step"
        share = f"{percent(idle / step)} of the step including it"
        change += ", or profile several steps: the wall time of each but the first contains it"
    first = "wall time" if linked.launch_latency_work.get("events") else "first event on the device"
    return Found(
        severity="warning" if idle >= MUCH * step else "info",
        text=f"{begins} {waits} ({share}), which its wall time does not contain: with it {mean} "
        f"takes {ms(step)}, of which the device is busy for "
        f"{percent(c.scale_to_step(c.phase.busy_ns) / step)}",
        evidence=[f"the step's annotation begins {c.idle_ms(latency)} before its {first}"],
        change=change,
    )


@finding("host-waits", "warning", needs_one_clock=True)
def host_waits(c: Context) -> Found | None:
    """Report that the device idles while the host copies data, or waits for the device."""
    copies, waits = idle_ns(c, "memcpy"), idle_ns(c, "sync")
    share = large_share(c, copies + waits)
    if share is None:
        return None
    calls = {"copy calls": copies, "calls that wait for the device": waits}
    parts = [f"{name} ({c.idle_ms(ns)})" for name, ns in calls.items() if ns]
    return Found(
        text=f"the device idles for {percent(share)} of the step while the host is in "
        f"{' and '.join(parts)}: neither smaller kernels nor a CUDA graph shorten that",
        evidence=_largest_gaps(c, "memcpy", "sync"),
        change="keep data on the device (no .item(), .cpu() or synchronise in a step), and copy "
        "from pinned memory with non_blocking=True",
    )


@finding("earlier-work", "info", needs_one_clock=True)
def earlier_work(c: Context) -> Found | None:
    """Report that the trace begins while the device runs earlier work, whose time is left out."""
    left_out = {"": c.phase.earlier_work_ns * c.phase.steps}
    if (dense := c.phase.baseline) is not None:
        left_out = {"pruned ": left_out[""], "dense ": dense.earlier_work_ns * dense.steps}
    times = [f"{ms(ns)} of the {side}trace" for side, ns in left_out.items() if ns]
    if not times:
        return None
    return Found(
        text="nothing is on the device at the very beginning, although the next kernel had been "
        "launched: most likely work ran that was launched before the profiler started; "
        f"{' and '.join(times)} {'is' if len(times) == 1 else 'are'} no time of a step, and left "
        "out",
        evidence=[
            f"{time} before the first kernel of its stream, which was launched before this time or "
            "soon after its start"
            for time in times
        ],
        change="synchronise before the profiler starts, or skip its first step "
        f"({c.kernels.profiler.recorder.warm})",
    )


@finding("stream-blocked", "warning", needs_one_clock=True)
def stream_blocked(c: Context) -> Found | None:
    """Report that the device idles although the next kernel was launched: its stream waits."""
    share = large_share(c, idle_ns(c, "blocked"))
    if share is None:
        return None
    elsewhere = when(graph_idle(c) is not None, ", as it does within replays of graphs")
    return Found(
        text=f"the device idles for {percent(share)} of the step although the next kernel had been "
        "launched before: its stream waits for another one or for an event, or the trace "
        f"lacks what ran meanwhile{elsewhere}",
        evidence=_largest_gaps(c, "blocked"),
        change="find out what the stream waits for (a stream, a copy, another rank), and compare "
        "steps without it",
    )


@finding("unattributed-idle", "warning")
def unattributed_idle(c: Context) -> Found | None:
    """Report that the device idles for a large part of the step, and the trace shows no cause."""
    if not c.kernels.on_device:
        return None
    ns = idle_ns(c, "unknown")
    share = large_share(c, ns)
    if share is None:
        return None
    return Found(
        text=f"the device idles for {percent(share)} of the step ({c.idle_ms(ns)}) before work "
        "whose launch the trace does not show: why it waits is not known",
        evidence=_largest_gaps(c, "unknown"),
        change="record the launches too (ProfilerActivity.CPU beside that of the device), and ops",
        about_ns=c.idle_in_step(ns),
    )


@finding("graph-idle", "warning")
def graph_idle(c: Context) -> Found | None:
    """Report that replays of CUDA graphs idle between their own kernels: the trace lacks some."""
    frame, steps = c.kernels.frame, c.kernels.num_steps
    gaps = frame["idle_replay"].filter(frame["idle_replay"] > 0).to_list()
    ns = sum(gaps) / steps
    if ns < NAMED * c.phase.wall_ns or not ns:
        return None
    lines = [
        f"{len(gaps) / steps:g} gaps of more than 1 ms a step; the longest is "
        f"{c.idle_ms(max(gaps))}"
    ]
    before = c.per_step(frame.filter(pl.Series(c.kernels.linked.replayed)), "idle_unknown")
    if before:
        lines.append(
            f"another {c.idle_ms(before)} before the first events of replays that had been "
            "launched: a stream waited, or the trace lacks kernels there too"
        )
    return Found(
        text=f"replays of CUDA graphs idle for {c.idle_ms(ns)} of the step "
        f"({percent(c.idle_share(ns))}) between their own kernels: the trace lacks kernels "
        "that ran there, or the graph contains work of the host; busy time and shares by kind are "
        "lower bounds",
        evidence=lines,
        change="trace the step without graphs to see every kernel, and compare the kernels of both",
    )


def _largest_gaps(c: Context, *causes: str) -> list[str]:
    """Describe the longest gaps of some causes, by the kernel that ended them."""
    rows = c.kernels.frame.filter(pl.col("cause").is_in(causes))
    sums = rows.group_by("name").agg((pl.col("gap") - pl.col("idle_other_step")).sum(), pl.len())
    sums = sums.sort(["gap", "name"], descending=[True, False]).head(3)
    steps = c.kernels.num_steps
    return [
        f"{c.idle_ms(gap / steps)} in {count / steps:g} gap{plural(count / steps)} before "
        f"{shortened(name or '?')}"
        for name, gap, count in sums.iter_rows()
    ]


@finding("step-outlier", "warning")
def step_outlier(c: Context) -> Found | None:
    """Report that some steps take far longer or shorter than the others."""
    if c.phase.unprofiled_ns is not None:
        return None  # samples describe the step, and timing-not-valid names disturbed ones
    texts, lines = [], []
    for label, side in c.sides:
        if len(odd := odd_steps(side.kernels.linked.wall)):
            texts.append(f"{label}{_describe_steps(side.kernels, odd)}")
            lines += [f"{label}{line}" for line in _busy_and_idle(side.kernels, odd)]
    if not texts:
        return None
    return Found(
        text=f"{'; '.join(texts)}: the mean is over both",
        evidence=lines,
        change="find out what differs in the odd steps; more steps show which are the rule, and "
        "--phase-pattern keeps the steps of one kind",
    )


def odd_steps(walls: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the steps whose wall is far from the median one, and farther than usual.

    `walls`: ns. Far is more than a quarter of the median, and more than five times the median of
    all such distances. With fewer than three steps none is odd.
    """
    if len(walls) < _LEAST_STEPS:
        return np.zeros(0, np.int64)
    middle = np.median(walls)
    apart = np.abs(walls - middle)
    return np.flatnonzero((apart > _ODD * middle) & (apart > _USUAL * np.median(apart)))


def _describe_steps(kernels: Kernels, odd: NDArray[np.int64]) -> str:
    """Say which steps are odd, with their times and that of the others."""
    walls, named = kernels.linked.wall, odd[:_NAMED_STEPS].tolist()
    steps = list(map(str, named))
    if len(odd) > _NAMED_STEPS:
        steps.append(f"{len(odd) - _NAMED_STEPS} more")
    return (
        f"step{plural(len(odd))} {enumerate_words(steps)} (of 0 to {len(walls) - 1}) "
        f"take{when(len(odd) == 1, 's')} {enumerate_words([ms(walls[step]) for step in named])}, "
        f"the others {ms(float(np.median(np.delete(walls, odd))))} (median)"
    )


def _busy_and_idle(kernels: Kernels, odd: NDArray[np.int64]) -> Iterator[str]:
    """Describe busy and idle time of the other steps and of the first odd ones."""
    busy = np.bincount(kernels.linked.step, kernels.linked.busy, minlength=len(kernels.linked.wall))
    for part, ns in (("busy", busy), ("idle", kernels.linked.wall - busy)):
        each = ", ".join(f"{ms(ns[step])} in step {step}" for step in odd[:_NAMED_STEPS].tolist())
        yield f"{part}: {ms(float(np.median(np.delete(ns, odd))))} in the others (median), {each}"
