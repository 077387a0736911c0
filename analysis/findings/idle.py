"""Why the device idles: in, a Context; out, a Finding, or None. ns a step."""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.kernels.beside import LOADER
from prunescope.analysis.kernels.waits import cause_sums, dispatch, host, host_late
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.words import percent

_SOME, _MUCH, _MOST = 0.05, 0.25, 0.4  # of the wall
_NAMED = 0.02  # of the wall: worth a line
_HARDLY = 0.01  # of what follows


def launch_bound(c: Context) -> Finding | None:
    """The device idles while the host prepares the next launch, and is in no copy or wait."""
    late, others = host_late(c.pruned.frame)
    phase, steps = c.phase, c.pruned.num_steps
    spared, other = late / steps, others / steps
    idle = phase.gap_ns - int(c.pruned.frame["idle_other_step"].sum()) / steps
    share = _much(c, spared)
    if share is None:
        return None
    stacks = c.pruned.stacks
    return Finding(
        id="launch-bound",
        severity="critical" if share > _MOST and not stacks else "warning",
        text=f"launch-bound: the device waits for a late host for {percent(share)} of the step "
        f"(it idles for {percent(idle / phase.wall_ns)}); smaller kernels cannot make that faster",
        evidence=[
            *[_stacks(stacks)] * bool(stacks),
            f"in {ms(spared)} of {ms(idle)} idle time the host ran ops or made calls, or "
            "neither for less than 1 ms, before a launch that began after the device ran dry",
            *_longest(c),
            *[
                f"in {ms(other)} more it loaded data, computed products itself, or did other work "
                "than dispatch"
            ]
            * bool(other),
        ],
        change=_fewer_launches(c),
        predicted_ns=spared
        if c.pruned.is_replay
        else spared + _gaps(c, "device") + int(c.pruned.frame["idle_copy_launch"].sum()) / steps,
    )


def _longest(c: Context) -> list[str]:
    """In which ops most of the late dispatch was, of those that are long."""
    ops = c.pruned.frame.filter(pl.col("host_activity").str.contains("::", literal=True))
    spared = pl.min_horizontal(dispatch(), "host_activity_ns")
    by = ops.group_by("host_activity").agg(spared.sum().alias("ns"))
    by = by.sort("ns", "host_activity", descending=[True, False]).head(2)
    least = _NAMED * c.pruned.wall
    steps = c.pruned.num_steps
    return [f"{ms(ns / steps)} of it in {shortened(n)}" for n, ns in by.iter_rows() if ns >= least]


def _stacks(calls: int) -> str:
    return (
        f"the profiler recorded {calls:,} calls of Python (with_stack), each at a cost to the "
        "host: without stacks the device waits less"
    )


def _fewer_launches(c: Context) -> str:
    if c.pruned.is_replay:
        return (
            "shorten what the host does between two replays (the step is a graph already), or "
            "batch more"
        )
    ours = c.side.run is not None
    way = (
        "trace --mode graph"
        if ours
        else "torch.cuda.graph, or torch.compile(mode='reduce-overhead')"
    )
    stops = c.pruned.stops
    first = f", once the {stops} of a step are gone: no graph holds them" if stops else ""
    if c.pruned.frame["idle_computed"].sum() >= _NAMED * c.pruned.wall:
        first = f", once the products that the host computes run on the device{first}"
    return f"capture the step in a CUDA graph ({way}){first}, or batch more"


def host_work(c: Context) -> Finding | None:
    """The device idles while the host does other work than dispatch: it loads data, computes
    products itself, or runs Python that starts no op for long."""
    frame, steps = c.pruned.frame, c.pruned.num_steps
    share = _much(c, host_late(frame)[1] / steps)
    if share is None:
        return None
    rest = host() - dispatch() - pl.col("idle_computed")
    within = pl.min_horizontal(rest, "host_activity_ns").sum().alias("within")
    by = (
        frame.group_by("host_activity").agg(rest.sum().alias("ns"), within).filter(pl.col("ns") > 0)
    )
    by = by.sort("ns", descending=True)
    computed = int(frame["idle_computed"].sum())
    lines = [
        *[f"{ms(computed / steps)} in matrix products that the host computed itself"]
        * bool(computed),
        *(
            f"{ms(ns / steps)} in nothing that the trace names"
            if name is None
            else f"{ms(within / steps)} in {name[:120]}{_around(within / steps, ns / steps)}"
            for name, ns, within in by.head(3).iter_rows()
        ),
    ]
    first = by["ns"].head(1).sum()
    loads = first > computed and bool(by["host_activity"].head(1).str.contains(LOADER).any())
    return Finding(
        id="host-work",
        severity="warning",
        text=f"the device idles for {percent(share)} of the step while the host "
        f"{'waits for or prepares data' if loads else 'does other work than the launch of ops'}: "
        "neither smaller kernels nor a CUDA graph make that faster",
        evidence=lines,
        change="load and prepare the next batch in other processes while the device works "
        "(DataLoader: num_workers, prefetch_factor, persistent_workers)"
        if loads
        else "move that work off the path of the step, or onto the device",
        predicted_ns=None,
    )


def _around(within: float, ns: float) -> str:
    """The host's part of the gaps, where a name does not fill it."""
    return f", within gaps of {ms(ns)}" if within < ns else ""


def host_lead(c: Context) -> Finding | None:
    """Before the first step's first event on the device the host works for long: no wall has it,
    and that of each step after it has its own."""
    linked = c.pruned.linked
    if c.pruned.windows.source == "whole" or linked.launch_latency_ns is None:
        return None
    idle = linked.launch_latency_ns - (linked.launch_latency_busy_ns or 0)
    steps = c.pruned.num_steps
    whole = c.phase.wall_ns + linked.launch_latency_ns / steps
    if not c.pruned.on_device or idle < _SOME * whole:
        return None
    begins = "the step begins" if steps == 1 else f"the first of {steps} steps begins"
    return Finding(
        id="host-lead",
        severity="warning" if idle >= _MUCH * whole else "info",
        text=f"{begins} with {ms(idle)} on the host in which the device runs nothing "
        f"({_share_of_lead(idle, whole, steps)}), and the wall leaves it out: with it "
        f"{'the' if steps == 1 else 'a mean'} step takes {ms(whole)}, of which the device is "
        f"busy for {percent(c.phase.busy_ns / whole)}",
        evidence=[
            f"the step's annotation begins {ms(linked.launch_latency_ns)} before its "
            f"{'wall' if linked.launch_latency_work.get('events') else 'first event on the device'}"
        ],
        change="look at what the host does there (data, preprocessing, a first call of a kernel)"
        + ", or profile several steps: the wall of each after the first has it" * (steps == 1),
        predicted_ns=None,
    )


def _share_of_lead(idle: float, whole: float, steps: int) -> str:
    """Of all steps together, leads with them: `whole` is their mean."""
    if steps == 1:
        return f"{percent(idle / whole)} of the step with it"
    return f"{percent(idle / (steps * whole), 1)} of all of them with it"


def host_waits(c: Context) -> Finding | None:
    """The device idles beside copies between host and device, and where the host waits for it."""
    copies, waits = _gaps(c, "memcpy"), _gaps(c, "sync")
    share = _much(c, copies + waits)
    if share is None:
        return None
    parts = [f"copy calls ({ms(copies)})"] * bool(copies)
    parts += [f"calls that wait for the device ({ms(waits)})"] * bool(waits)
    return Finding(
        id="host-waits",
        severity="warning",
        text=f"the device idles for {percent(share)} of the step while the host is in "
        f"{' and '.join(parts)}: neither smaller kernels nor a CUDA graph make that faster",
        evidence=_largest(c, "memcpy", "sync"),
        change="keep data on the device (no .item(), .cpu() or synchronise in a step), and copy "
        "from pinned memory with non_blocking=True",
        predicted_ns=None,
    )


def held_back(c: Context) -> Finding | None:
    """The device idles although the next kernel was launched long before: its stream waits."""
    share = _much(c, _gaps(c, "blocked") - _at_the_begin(c))
    if share is None:
        return None
    elsewhere = ", as it does within replays of graphs" * (graph_holes(c) is not None)
    return Finding(
        id="held-back",
        severity="warning",
        text=f"the device idles for {percent(share)} of the step although the next kernel had been "
        "launched before: its stream waits for another one or for an event, or the trace "
        f"lacks what ran meanwhile{elsewhere}",
        evidence=_largest(c, "blocked"),
        change="find what is waited for (a stream, a copy, another rank), and compare steps "
        "without it",
        predicted_ns=None,
    )


def earlier_work(c: Context) -> Finding | None:
    """The trace begins with a device that shows nothing, though a kernel had been launched on a
    stream that had no event before: what had been launched before the profiler began ran."""
    held = _at_the_begin(c)
    share = _much(c, held)
    if share is None:
        return None
    rest = c.phase.wall_ns - held
    return Finding(
        id="earlier-work",
        severity="warning",
        text=f"the trace shows nothing on the device for {percent(share)} of the step, right at "
        "its begin, although the next kernel had been launched: most likely what had been launched "
        f"before the profiler began ran then; without it a step takes {ms(rest)}, of which the "
        f"device is busy for {percent(c.phase.busy_ns / rest)}",
        evidence=[
            f"{ms(held)} before the first kernel of its stream, which was launched before they "
            "began or soon after"
        ],
        change="synchronise before the profiler starts, or leave out its first step "
        "(torch.profiler.schedule with warmup=1)",
        predicted_ns=None,
    )


def _at_the_begin(c: Context) -> float:
    """ns a step in which a kernel of the first step was held back before the first event of its
    stream, where hardly anything ran before."""
    frame = c.pruned.frame
    if not c.pruned.on_device or frame.is_empty():
        return 0.0
    first = frame.filter(pl.col("step") == pl.col("step").min())
    longest = first.sort("idle_blocked").tail(1).row(0, named=True)
    before = frame.filter(pl.col("start") < longest["start"])
    held: int = longest["idle_blocked"]
    follows = longest["stream"] in before["stream"] or c.pruned.linked.carry_over["events"]
    if follows or before["busy"].sum() > _HARDLY * held:
        return 0.0
    return held / c.pruned.num_steps


def graph_holes(c: Context) -> Finding | None:
    """A replay of a graph stands still between its own kernels."""
    frame, steps = c.pruned.frame, c.pruned.num_steps
    gaps = frame["idle_replay"].filter(frame["idle_replay"] > 0).to_list()
    ns = sum(gaps) / steps
    if ns < _NAMED * c.phase.wall_ns or not ns:
        return None
    before = int(frame["idle_unknown"].filter(pl.Series(c.pruned.linked.replayed)).sum()) / steps
    return Finding(
        id="graph-holes",
        severity="warning",
        text=f"replays of CUDA graphs stand still for {ms(ns)} of the step "
        f"({percent(ns / c.phase.wall_ns)}) between kernels of their own: the trace lacks kernels "
        "that ran there, or the graph holds work of the host; busy time and shares by kind are "
        "lower bounds",
        evidence=[
            f"{len(gaps) / steps:g} gaps of more than 1 ms a step; the longest is {ms(max(gaps))}",
            *[
                f"{ms(before)} more before the first events of replays, which had been launched: a "
                "stream waited, or the trace lacks kernels there too"
            ]
            * bool(before),
        ],
        change="capture the step without graphs to see every kernel, and compare the kernels "
        "of both",
        predicted_ns=None,
    )


def _much(c: Context, ns: float) -> float | None:
    """Idle time as a share of the step of a device; None where that is little."""
    share = ns / c.phase.wall_ns if c.phase.wall_ns else 0.0
    return share if c.pruned.on_device and share >= _MUCH else None


def _gaps(c: Context, cause: str) -> float:
    return cause_sums(c.pruned.frame)[cause] / c.pruned.num_steps


def _largest(c: Context, *causes: str) -> list[str]:
    """The longest gaps of these causes, by what ended them."""
    rows = c.pruned.frame.filter(pl.col("cause").is_in(causes))
    sums = rows.group_by("name").agg((pl.col("gap") - pl.col("idle_other_step")).sum(), pl.len())
    sums = sums.sort(["gap", "name"], descending=[True, False]).head(3)
    steps = c.pruned.num_steps
    return [
        f"{ms(gap / steps)} in {count / steps:g} gap{'s' * (count != steps)} before "
        f"{shortened(name or '?')}"
        for name, gap, count in sums.iter_rows()
    ]
