"""The lines of "What was measured": in, a Phase of the Report; out, plain lines with units,
unescaped.

Throughput, bounds, pairing, closure, profiler overhead, causes of idle time, tiles, events outside
of the steps, and what Holistic Trace Analysis (HTA) found.
"""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.report import Phase

# Fields of a phase and of its baseline in bytes, and their names.
MEMORY = (
    ("weight_bytes", "weights"),
    ("kv_bytes", "KV cache"),
    ("peak_memory_bytes", "peak memory"),
)
_LATE = (
    "host",
    "first_call",
    "allocator",
    "collective",
    "sync",
    "memcpy",
)  # causes of idle time before a launch that came late
_TILE_FITS = {
    "exact": "one block a tile",
    "padded": "rounded up",
    "split": "K split",
    "persistent": "persistent blocks",
    "unexplained": "unexplained",
}
_ON_HOST = ("host", "collective", "tail")  # causes of the gaps of a host trace
_CAUSES = {
    "host": "the host was late",
    "first_call": "the host in first calls or compilation",
    "allocator": "the host in calls that allocate or free memory",
    "collective": "collectives of host threads",
    "sync": "the host in a call that waits for the device",
    "memcpy": "the host in a copy call",
    "held": "blocked by another stream after the launch",
    "device": "launched in time",
    "unknown": "unattributed",
    "other_step": "the device ran work that a later step launched ahead",
    "tail": "trailing, after the last event",
}
_REASONS = 3  # why no GEMM has a good dimension
_LEAST_IDLE = 0.001  # of the wall: to save less idle time than that reads as 1.00×
_COMM = 0.05  # of the wall: a step that waits for other ranks


def lines(phase: Phase) -> list[str]:
    """How the numbers were taken, and that they close."""
    every = [
        throughput(phase),
        bounds(phase),
        pairing(phase),
        closure(phase),
        profiler_overhead(phase),
        *idle_and_tiles(phase),
        *outside_steps(phase),
        *phase.notes,
        *second_opinion(phase),
    ]
    return [line for line in every if line]


def throughput(phase: Phase) -> str:
    """Tokens or items per second and memory, dense → pruned where both are known."""
    facts = []
    for key, label, form in (
        ("tokens_per_s", "tokens/s", numbers.rate),
        ("items_per_s", "items/s", numbers.rate),
        *((key, label, numbers.size) for key, label in MEMORY),
    ):
        if (now := getattr(phase, key)) is not None:
            dense = getattr(phase.baseline, key, None)
            before = "" if dense is None else f"{form(dense)} → "
            facts.append(f"{label} {before}{form(now)}")
    return " · ".join(facts)


def bounds(phase: Phase) -> str:
    """Busy time by what bounds it, and the idle time but for gaps before kernels that had been
    launched when the device was starved."""
    shares = ", ".join(
        f"{numbers.percent(numbers.share_of(phase.bound.get(name), phase.busy_ns))} {name}"
        for name in ("compute", "memory", "latency", "unknown")
        if phase.bound.get(name)
    )
    text = f"bound by, of busy: {shares or numbers.UNKNOWN}"
    if phase.bound.get("compute") or phase.bound.get("memory"):
        text += " (compute or memory: the larger of FLOPs ÷ peak and bytes ÷ bandwidth, whatever "
        text += "share of it is reached)"
    launch = phase.bound.get("launch")
    anatomy = phase.anatomy
    if launch and anatomy is not None and anatomy.graph_speedup is not None:
        launch = min(launch, sum(anatomy.gaps.get(name, 0.0) for name in _LATE))
    if launch:
        launch = phase.idle_in_step(launch)
        share = numbers.percent(numbers.share_of(launch, phase.step_time_ns))
        where = "between ops" if _on_host(phase) else "idle before kernels not launched in time"
        text += f"; {where} {numbers.time(launch)} ({share} of the wall)"
        if phase.is_skewed:
            text += ", which is uncertain: the clocks of host and device differ"
    return text


def _on_host(phase: Phase) -> bool:
    """Whether ops ran on the CPU of the trace: it has no launches, and no graph spares any."""
    anatomy = phase.anatomy
    if anatomy is None or anatomy.graph_speedup is not None or phase.is_skewed:
        return False
    return all(not ns for cause, ns in anatomy.gaps.items() if cause not in _ON_HOST)


def pairing(phase: Phase) -> str:
    """How dense and pruned were matched."""
    pairs = phase.pairing
    if pairs is None:
        return ""
    text = (
        f"paired by {pairs.alignment}: {pairs.matched} units (the work of one role in "
        f"one layer) matched, {pairs.removed} removed, {pairs.added} added"
    )
    return f"{text}; {pairs.layers}" if pairs.layers else text


def closure(phase: Phase) -> str:
    """The line of closure: busy + gaps + trailing idle = wall, in whole ns over all kept steps."""
    parts = (phase.busy_ns, phase.gap_ns, phase.tail_ns, phase.wall_ns)
    busy, gap, tail, wall = (round(ns * phase.steps) for ns in parts)
    off = busy + gap + tail - wall
    return (
        f"closure: busy + gaps + trailing idle {'≠' if off else '='} wall: {numbers.whole(busy)} + "
        f"{numbers.whole(gap)} + {numbers.whole(tail)} {'≠' if off else '='} "
        f"{numbers.whole(wall)} ns, summed over {phase.steps} step{'s' * (phase.steps != 1)} "
        f"(difference {numbers.whole(off)} ns)"
    )


def profiler_overhead(phase: Phase) -> str:
    """The profiler's overhead, and the time base of the ledger."""
    base = _time_base(phase)
    if phase.profiler_overhead_ratio is None:
        return f"profiler overhead: unknown, no unprofiled samples; {base}"
    dense = phase.baseline.profiler_overhead_ratio if phase.baseline else None
    ratios = numbers.ratio(phase.profiler_overhead_ratio)
    ratios += f", dense {numbers.ratio(dense)}" if dense else ""
    return f"profiler overhead: profiled wall ÷ unprofiled step = {ratios}; {base}"


def _time_base(phase: Phase) -> str:
    if phase.time_base != "unprofiled":
        return "all times are as profiled" if phase.time_scale is None else _scaled(phase)[2:]
    is_placed = all(timed.placements for timed in phase.sampled or ())
    kind = "geometric means over placements of medians" if is_placed else "medians of the samples"
    text = f"the ledger closes to the unprofiled times ({kind})"
    if phase.profiler_overhead_share is not None and not phase.invalid_times:
        share = numbers.percent(phase.profiler_overhead_share)
        text += f"; {share} of the profiled dense time is profiler overhead"
    return text + _scaled(phase)


def _scaled(phase: Phase) -> str:
    """The factor by which findings scale recorded times, if unprofiled times are known."""
    if (scale := phase.time_scale) is None:
        return ""
    if phase.is_slowed:
        return f"; times in findings are recorded ones × {scale.busy:.2f}, as in the step"
    return f"; idle times in findings are recorded ones × {scale.idle:.2f}, as in the step"


def idle_and_tiles(phase: Phase) -> list[str]:
    """Idle time by cause, how tiles explain grids, the fit of predictions, missing shapes."""
    anatomy = phase.anatomy
    if anatomy is None:
        return []
    every = _idle(anatomy, phase), _tiles(anatomy), _fit(anatomy), _no_good_sizes(anatomy)
    return [line for line in every if line]


def _idle(anatomy: Anatomy, phase: Phase) -> str:
    """Idle time by cause, and what a CUDA graph could save of it at most."""
    idle = sum(anatomy.gaps.values())
    is_unattributed = anatomy.gaps.get("unknown") or phase.is_skewed
    if idle <= _LEAST_IDLE * phase.wall_ns or (
        anatomy.graph_speedup is None and not is_unattributed
    ):
        return ""
    causes = ", ".join(
        f"{label} {numbers.time(anatomy.gaps[cause])}"
        for cause, label in _CAUSES.items()
        if anatomy.gaps.get(cause)
    )
    step = "" if phase.time_scale is None else " of the profiled step"
    text = f"idle {numbers.time(idle)} of {numbers.time(phase.wall_ns)}{step}: {causes}"
    if phase.is_skewed:
        return f"the clocks of host and device differ, so the causes here are uncertain: {text}"
    if anatomy.graph_speedup is None:
        return text
    late = anatomy.gaps.get("host", 0.0)
    other = 0.0 if anatomy.dispatch_ns is None else late - anatomy.dispatch_ns
    dispatch = f" ({numbers.time(late - other)})" if other else ""
    text += f"; without late dispatch{dispatch} {numbers.ratio(anatomy.graph_speedup)}"
    if anatomy.kernels_speedup is None:
        return text
    copies = sum(part.ns for part in anatomy.idle if part.doing == "copy_launch")
    stays = idle - (late - other) - anatomy.gaps.get("device", 0.0) - copies
    text += f"; a CUDA graph gives at most {numbers.ratio(anatomy.kernels_speedup)}"
    text += f", because {numbers.time(stays)} of idle time remain" if stays else ""
    waits = phase.kinds.get("comm", 0.0) > _COMM * phase.wall_ns
    return f"{text}, if every rank that it waits for gains as much" if waits else text


def _tiles(anatomy: Anatomy) -> str:
    tested = sum(ns for fit, ns in anatomy.tiles.items() if fit in _TILE_FITS)
    if not tested:
        return ""
    explained = tested - anatomy.tiles.get("unexplained", 0.0)
    how = ", ".join(
        f"{_TILE_FITS[fit]} {numbers.percent(ns / tested)}"
        for fit, ns in anatomy.tiles.items()
        if fit in _TILE_FITS
    )
    total = sum(anatomy.tiles.values())
    return (
        f"tiles in kernel names explain the grids of {numbers.percent(explained / tested)} of the "
        f"GEMM time that can be tested ({how}); that is {numbers.percent(tested / total)} of all "
        "GEMM time"
    )


def _fit(anatomy: Anatomy) -> str:
    fit = anatomy.fit
    if fit is None:
        return ""
    apart = "; for two GEMMs whose M·N·K differ by a factor of e, this ratio differs by "
    spread = "" if fit.spread is None else f"{apart}{numbers.percent(fit.spread)}"
    return (
        f"{fit.gemms} distinct GEMMs take {fit.factor:.2f} times what tile, wave and roofline "
        f"predict{spread}"
    )


def _no_good_sizes(anatomy: Anatomy) -> str:
    """Why there is no table of good dimensions, where no GEMM has any."""
    reasons: dict[str, float] = {}
    for shape in anatomy.shapes:
        if shape.refused is None:
            return ""
        if shape.axis == "N":
            reasons[shape.refused] = reasons.get(shape.refused, 0.0) + shape.busy_ns
    total = sum(reasons.values())
    if not total:
        return ""
    largest = sorted(reasons.items(), key=lambda item: -item[1])[:_REASONS]
    each = "; ".join(f"{why} ({numbers.percent(ns / total)} of their time)" for why, ns in largest)
    return f"no nearest good dimensions are known for these GEMMs: {each}"


def outside_steps(phase: Phase) -> list[str]:
    """Events that the wall leaves out: carry-over, unlinked ones at the end, those outside every
    step; and what lies before the first kernel."""
    groups = (
        ("carry-over", phase.carry_over, "launched before the trace began, by the step before"),
        ("unlinked at the end", phase.late, "after the last event with a launch in the trace"),
        ("outside steps", phase.left_out, "launched outside of every step, or in an unknown one"),
    )
    found = [
        f"{name}: {numbers.count(part.get('events'))} events, {numbers.time(part.get('ns'))}, {why}"
        for name, part, why in groups
        if part.get("events")
    ]
    if phase.between_ns:
        found.append(
            f"between steps: {numbers.time(phase.between_ns)} before a step (mean) in which the "
            "device idles and the host waits outside of all ranges, in the wall of no step"
        )
    return [*found, _launch_latency(phase)] if phase.launch_latency_ns else found


def _launch_latency(phase: Phase) -> str:
    """The launch latency: from the start of the first step on the host to the start of its wall."""
    latency_ns, busy_ns = phase.launch_latency_ns, phase.launch_latency_busy_ns
    own = phase.launch_latency_work
    events, alone_ns = own.get("events") or 0, own.get("ns") or 0.0
    end = "the end of work launched before it" if events else "its first device event"
    text = f"launch latency before the first kernel: {numbers.time(latency_ns)} from the begin "
    text += f"of the first step on the host to {end}, not in the wall"
    if busy_ns is None or latency_ns is None:
        return text
    if not busy_ns:
        return f"{text}: the trace holds nothing on the device then"
    text += f": the device ran earlier work for {numbers.time(busy_ns - alone_ns)}"
    if events:
        text += f", {numbers.count(events)} event{'s' * (events != 1)} of the step itself, which "
        text += f"its wall leaves out, for {numbers.time(own.get('ran_ns'))} "
        text += f"({numbers.time(alone_ns)} of it concurrent with nothing earlier),"
    return f"{text} and idled for {numbers.time(latency_ns - busy_ns)}"


def second_opinion(phase: Phase) -> list[str]:
    """Totals of the whole trace by Holistic Trace Analysis, next to ours."""
    hta = phase.hta
    if hta is None:
        return []
    name = f"HTA {hta.version}" if hta.version else "HTA"
    found = []
    if hta.busy_ns is not None:
        ours = hta.ours
        found.append(
            f"{name} of the whole trace, all steps and what lies outside: busy "
            f"{numbers.time(hta.busy_ns)}, idle {numbers.time(hta.idle_ns)} of "
            f"{numbers.time(hta.total_ns)} (ours: {numbers.time(ours.get('busy_ns'))}, "
            f"{numbers.time(ours.get('idle_ns'))} of {numbers.time(ours.get('total_ns'))})"
        )
    found += [f"{name} failed: {why}" for why in hta.failed]
    if hta.waits:
        waits = ", ".join(f"{k} {numbers.time(v)}" for k, v in hta.waits.items())
        found.append(f"HTA of idle time, summed over streams: {waits}")
    if hta.kernel_types:
        types = ", ".join(f"{k} {numbers.time(v)}" for k, v in hta.kernel_types.items())
        found.append(f"HTA of busy time, intervals cut to whole µs: {types}")
    if hta.launches:
        mean = {key: numbers.time(hta.launches.get(f"{key}_ns")) for key in ("cpu", "gpu", "delay")}
        found.append(
            f"HTA of {numbers.count(hta.launches.get('count'))} launches, means: host "
            f"{mean['cpu']}, device {mean['gpu']}, delay {mean['delay']}"
        )
    return found
