"""The lines of "What was measured", shared by every format.

In: a Phase of the Report. Out: plain lines with units, unescaped: throughput, bounds, pairing,
closure, profiler overhead, causes of idle time, tiles, events outside of the steps, and the results
of Holistic Trace Analysis (HTA).
"""

from __future__ import annotations

from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.summary.setting import run_words
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural, when

# Fields of a phase and of its baseline in bytes, and their names.
MEMORY = (
    ("weight_bytes", "weights"),
    ("kv_bytes", "KV cache"),
    ("peak_memory_bytes", "peak memory"),
)
# Causes of idle time before a launch that came late.
_LATE = ("host", "first_call", "allocator", "collective", "sync", "memcpy")
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
    """Return how the numbers of a phase were taken, and that they close."""
    all_lines = [
        run_words(phase),
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
    return [line for line in all_lines if line]


def throughput(phase: Phase) -> str:
    """Return tokens or items per second and memory, dense → pruned where both are known."""
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
    """Return the busy time by its bound, and the idle time before kernels not launched in time."""
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
        where = "idle before kernels not launched in time"
        where = "between ops" if _is_host_trace(phase) else where
        text += f"; {where} {numbers.time(launch)} ({share} of the wall)"
        text += when(phase.is_skewed, ", which is uncertain: the clocks of host and device differ")
    return text


def _is_host_trace(phase: Phase) -> bool:
    """Return whether ops ran on the CPU of the trace: it has no launches that a graph spares."""
    anatomy = phase.anatomy
    if anatomy is None or anatomy.graph_speedup is not None or phase.is_skewed:
        return False
    return all(not ns for cause, ns in anatomy.gaps.items() if cause not in _ON_HOST)


def pairing(phase: Phase) -> str:
    """Return how dense and pruned were matched; empty without a baseline."""
    pairs = phase.pairing
    if pairs is None:
        return ""
    text = (
        f"paired by {pairs.alignment}: {pairs.matched} units (the work of one role in "
        f"one layer) matched, {pairs.removed} removed, {pairs.added} added"
    )
    return f"{text}; {pairs.layers}" if pairs.layers else text


def closure(phase: Phase) -> str:
    """Return busy + gaps + trailing idle = wall, in whole ns, summed over all kept steps."""
    busy, gaps, tail, wall = phase.closure_ns
    difference = busy + gaps + tail - wall
    sign = "≠" if difference else "="
    return (
        f"closure: busy + gaps + trailing idle {sign} wall: {numbers.whole(busy)} + "
        f"{numbers.whole(gaps)} + {numbers.whole(tail)} {sign} {numbers.whole(wall)} ns, summed "
        f"over {phase.steps} step{plural(phase.steps)} (difference {numbers.whole(difference)} ns)"
    )


def profiler_overhead(phase: Phase) -> str:
    """Return the profiler's overhead, and the time base of the ledger."""
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
    """Return the factor by which findings scale recorded times, if any, after `; `."""
    if (scale := phase.time_scale) is None:
        return ""
    if phase.is_slowed:
        return f"; times in findings are recorded ones × {scale.busy:.2f}, as in the step"
    return f"; idle times in findings are recorded ones × {scale.idle:.2f}, as in the step"


def idle_and_tiles(phase: Phase) -> list[str]:
    """Return the lines on idle time, tiles, the fit of predictions and missing dimensions."""
    anatomy = phase.anatomy
    if anatomy is None:
        return []
    all_lines = _idle(anatomy, phase), _tiles(anatomy), _fit(anatomy), _no_good_sizes(anatomy)
    return [line for line in all_lines if line]


def _idle(anatomy: Anatomy, phase: Phase) -> str:
    """Return idle time by cause, and what a CUDA graph could save of it at most."""
    is_unattributed = anatomy.gaps.get("unknown") or phase.is_skewed
    if anatomy.idle_ns <= _LEAST_IDLE * phase.wall_ns or (
        anatomy.graph_speedup is None and not is_unattributed
    ):
        return ""
    causes = ", ".join(
        f"{label} {numbers.time(anatomy.gaps[cause])}"
        for cause, label in _CAUSES.items()
        if anatomy.gaps.get(cause)
    )
    step = when(phase.time_scale is not None, " of the profiled step")
    text = f"idle {numbers.time(anatomy.idle_ns)} of {numbers.time(phase.wall_ns)}{step}: {causes}"
    if phase.is_skewed:
        return f"the clocks of host and device differ, so the causes here are uncertain: {text}"
    if anatomy.graph_speedup is None:
        return text
    is_all_dispatch = anatomy.late_dispatch_ns == anatomy.gaps.get("host", 0.0)
    dispatch = when(not is_all_dispatch, f" ({numbers.time(anatomy.late_dispatch_ns)})")
    text += f"; without late dispatch{dispatch} {numbers.ratio(anatomy.graph_speedup)}"
    if anatomy.kernels_speedup is None:
        return text
    text += f"; a CUDA graph gives at most {numbers.ratio(anatomy.kernels_speedup)}"
    if stays := anatomy.idle_in_graph_ns:
        text += f", because {numbers.time(stays)} of idle time remain"
    is_waiting = phase.kinds.get("comm", 0.0) > _COMM * phase.wall_ns
    return text + when(is_waiting, ", if every rank that it waits for gains as much")


def _tiles(anatomy: Anatomy) -> str:
    """Return how much of the GEMM time the tiles in kernel names explain, and how."""
    tested = sum(ns for fit, ns in anatomy.tiles.items() if fit in _TILE_FITS)
    if not tested:
        return ""
    explained = tested - anatomy.tiles.get("unexplained", 0.0)
    how = ", ".join(
        f"{_TILE_FITS[fit]} {numbers.percent(numbers.share_of(ns, tested))}"
        for fit, ns in anatomy.tiles.items()
        if fit in _TILE_FITS
    )
    share_tested = numbers.percent(numbers.share_of(tested, sum(anatomy.tiles.values())))
    return (
        "tiles in kernel names explain the grids of "
        f"{numbers.percent(numbers.share_of(explained, tested))} of the GEMM time that can be "
        f"tested ({how}); that is {share_tested} of all GEMM time"
    )


def _fit(anatomy: Anatomy) -> str:
    """Return how well tile, wave and roofline predict the GEMMs; empty where none was predicted."""
    fit = anatomy.fit
    if fit is None:
        return ""
    text = f"{fit.gemms} distinct GEMMs take {fit.factor:.2f} times what tile, wave and roofline "
    text += "predict"
    if fit.spread is None:
        return text
    return (
        f"{text}; for two GEMMs whose M·N·K differ by a factor of e, this ratio differs by "
        f"{numbers.percent(fit.spread)}"
    )


def _no_good_sizes(anatomy: Anatomy) -> str:
    """Return why there is no table of good dimensions, where no GEMM has any."""
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
    each = "; ".join(
        f"{why} ({numbers.percent(numbers.share_of(ns, total))} of their time)"
        for why, ns in largest
    )
    return f"no nearest good dimensions are known for these GEMMs: {each}"


def outside_steps(phase: Phase) -> list[str]:
    """Return the events that the wall leaves out, and what lies before the first kernel.

    They are the carry-over, events at the end that have no launch, and those outside every step.
    """
    groups = (
        ("carry-over", phase.carry_over, "launched before the trace began, by the step before"),
        ("unlinked at the end", phase.late, "after the last event with a launch in the trace"),
        ("outside steps", phase.left_out, "launched outside of every step, or in an unknown one"),
    )
    texts = [
        f"{name}: {numbers.count(part.get('events'))} events, {numbers.time(part.get('ns'))}, {why}"
        for name, part, why in groups
        if part.get("events")
    ]
    if phase.between_ns:
        texts.append(
            f"between steps: {numbers.time(phase.between_ns)} before a step (mean) in which the "
            "device idles and the host waits outside of all ranges, in the wall of no step"
        )
    return [*texts, _launch_latency(phase)] if phase.launch_latency_ns else texts


def _launch_latency(phase: Phase) -> str:
    """Return the time from the start of the first step on the host to the start of its wall."""
    latency_ns, busy_ns = phase.launch_latency_ns, phase.launch_latency_busy_ns
    own = phase.launch_latency_work
    events = own.get("events") or 0
    end = "the end of work launched before it" if events else "its first device event"
    text = f"launch latency before the first kernel: {numbers.time(latency_ns)} from the begin "
    text += f"of the first step on the host to {end}, not in the wall"
    if busy_ns is None or latency_ns is None:
        return text
    if not busy_ns:
        return f"{text}: the trace holds nothing on the device then"
    text += f": the device ran earlier work for {numbers.time(phase.lead_earlier_ns)}"
    if events:
        text += f", {numbers.count(events)} event{plural(events)} of the step itself, which "
        text += f"its wall leaves out, for {numbers.time(own.get('ran_ns'))} "
        text += f"({numbers.time(own.get('ns') or 0.0)} of it concurrent with nothing earlier),"
    return f"{text} and idled for {numbers.time(phase.lead_idle_ns)}"


def second_opinion(phase: Phase) -> list[str]:
    """Return the totals of the whole trace by Holistic Trace Analysis, next to ours."""
    hta = phase.hta
    if hta is None:
        return []
    name = f"HTA {hta.version}" if hta.version else "HTA"
    texts = []
    if hta.busy_ns is not None:
        ours = hta.ours
        texts.append(
            f"{name} of the whole trace, all steps and what lies outside: busy "
            f"{numbers.time(hta.busy_ns)}, idle {numbers.time(hta.idle_ns)} of "
            f"{numbers.time(hta.total_ns)} (ours: {numbers.time(ours.get('busy_ns'))}, "
            f"{numbers.time(ours.get('idle_ns'))} of {numbers.time(ours.get('total_ns'))})"
        )
    texts += [f"{name} failed: {why}" for why in hta.failed]
    if hta.waits:
        waits = ", ".join(f"{k} {numbers.time(v)}" for k, v in hta.waits.items())
        texts.append(f"HTA of idle time, summed over streams: {waits}")
    if hta.kernel_types:
        types = ", ".join(f"{k} {numbers.time(v)}" for k, v in hta.kernel_types.items())
        texts.append(f"HTA of busy time, intervals cut to whole µs: {types}")
    if hta.launches:
        mean = {key: numbers.time(hta.launches.get(f"{key}_ns")) for key in ("cpu", "gpu", "delay")}
        texts.append(
            f"HTA of {numbers.count(hta.launches.get('count'))} launches, means: host "
            f"{mean['cpu']}, device {mean['gpu']}, delay {mean['delay']}"
        )
    return texts
