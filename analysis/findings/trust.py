"""Whether the measured times can be trusted.

That is noise, profiler overhead, peaks, carry-over, clocks, and the sparsity that was promised.

In: a Context. Out: Found, or None. Times are ns a step, shares 0..1, clocks Hz.
"""

from __future__ import annotations

import msgspec
import polars as pl

from prunescope.analysis.findings.context import Context, communication, without_communication
from prunescope.analysis.findings.interruptions import why_work_is_hidden
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.inputs.side import Side
from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import (
    MISLABELLED,
    MUCH_SLOWED,
    NOT_VALID,
    SWAPPED_SIDES,
    UNCERTAIN_CONFIG,
    Ladder,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import known
from prunescope.taxonomy.keep import ALIGN, aligned_words
from prunescope.taxonomy.runs.run import RECORDER, PhaseRun
from prunescope.taxonomy.runs.validity import (
    FEW,
    is_wide,
    percentiles,
    ratios_of_turns,
    took_turns,
)
from prunescope.taxonomy.words import ms, percent, shortened, when

_ROUNDED = 1.005  # times a bound: less prints as the bound
_ABOVE = 1.05  # times a peak or bound from which it is exceeded
_NAMED = 0.1  # of the gain beyond the bound: a ledger row worth naming
_OFF = 0.1  # of the nominal sparsity: a difference worth a finding
_GREW = 0.0005  # a share that does not round to 0.0 %
_CLOCK = 0.05  # relative difference of clocks worth a finding
_VARIANTS = ("dense", "pruned")
_SHARES = {"parameters": "parameters", "flop": "FLOPs", "bytes": "bytes"}  # that are removed


@finding(NOT_VALID, "critical")
def timing_not_valid(c: Context) -> Found | None:
    """Report that something else ran during the samples, or they vary by half of their median.

    Without samples, on a CPU: interruptions hold most of a step, or half of what two steps differ
    by.
    """
    lines = []
    for label, side in c.sides:
        if side.run is not None:
            lines += [f"{label}{line}" for line in _disturbed(side.run)]
    lines += [*_wide(c), *why_work_is_hidden(c)]
    if not lines:
        return None
    return Found(
        text="timing not valid: something else ran at the same time, or the samples vary too much "
        "for a speedup",
        evidence=lines,
        change="stop everything else that runs on this machine, and trace again",
    )


@finding(UNCERTAIN_CONFIG, "warning")
def uncertain_config(c: Context) -> Found | None:
    """Report that the tiles of a GEMM do not fit the config that the shapes come from."""
    lines = []
    for name, kernels in (("dense", c.baseline_kernels), ("pruned", c.kernels)):
        if kernels is not None:
            texts = map(sentence, kernels.shapes.caveats)
            lines += [f"{name}: {text}" if c.baseline else text for text in texts]
    if not lines:
        return None
    return Found(
        text="the config that the shapes come from may be that of another model: its tiles do not "
        "fit the blocks of the trace",
        evidence=lines,
        change="give the config of each checkpoint (--model, and --baseline-model for the dense "
        "run)",
    )


def _wide(c: Context) -> list[str]:
    """Say which samples vary by half of their median.

    Where the two runs took turns, it is the ratios of their samples that vary: a machine that slows
    down and recovers changes both alike.
    """
    dense, pruned = c.baseline_phase_run, c.phase_run
    if dense is not None and pruned is not None and took_turns(dense, pruned):
        ratios = ratios_of_turns(dense, pruned)
        if not is_wide(ratios):
            return []
        low, mid, high = percentiles(ratios)
        return [
            f"dense ÷ pruned, sample by sample: 10th to 90th percentile {low:.2f} to {high:.2f}×, "
            f"median {mid:.2f}×"
        ]
    lines = []
    for label, side in c.sides:
        if side.run is None or len(side.run.samples_ns) < FEW or not is_wide(side.run.samples_ns):
            continue
        low, mid, high = percentiles(side.run.samples_ns)
        lines.append(f"{label}10th to 90th percentile {ms(low)} to {ms(high)}, median {ms(mid)}")
    return lines


def _disturbed(run: PhaseRun) -> list[str]:
    """Say how many samples and profiled steps were disturbed, and by what, if too many were."""
    lines = []
    if run.has_disturbed_samples:
        disturbed = sum(placement.disturbed for placement in run.placements)
        reasons = dict.fromkeys(why for placement in run.placements for why in placement.reasons)
        # The steps of a user's own loop are not taken again.
        again = when(run.interleaved != "alone", ", though taken again")
        lines.append(
            f"{disturbed} of {len(run.samples_ns)} samples disturbed{again}: {', '.join(reasons)}"
        )
    if run.has_disturbed_steps:
        placements = [placement for placement in run.placements if placement.steps_disturbed]
        steps = sum(placement.steps for placement in placements)
        reasons = dict.fromkeys(
            why for placement in placements for why in placement.steps_disturbed
        )
        lines.append(f"{steps} of {run.steps} profiled steps disturbed: {', '.join(reasons)}")
    return lines


@finding("no-speedup", "critical", needs_valid_times=True, compares=True)
def no_speedup(c: Context) -> Found | None:
    """Report that the interval of the speedup contains 1."""
    ladder = c.phase.ladder
    if ladder is None or ladder.realised_ci95 is None:
        return None
    if not ladder.holds_one or c.phase.family is None or c.phase.family.id == "dense":
        return None
    low, high = ladder.realised_ci95
    return Found(
        text=f"no speedup beyond noise: {ladder.realised:.3f}× [{low:.3f}, {high:.3f}]",
        evidence=[_interval_samples(c.phase)],
    )


def _interval_samples(phase: Phase) -> str:
    """Describe the samples behind the interval of the realised speedup."""
    if phase.sampled is None:
        return f"95 % bootstrap interval of the walls of {phase.steps} profiled steps"
    dense, pruned = phase.sampled
    if dense.placements and pruned.placements and len(dense.placements) == len(pruned.placements):
        return f"95 % interval over {len(pruned.placements)} placements"
    kind = "interval" if dense.placements and pruned.placements else "bootstrap interval"
    return f"95 % {kind} of {dense.in_words} (dense) ÷ {pruned.in_words} (pruned)"


@finding("wide-interval", "warning", compares=True)
def wide_interval(c: Context) -> Found | None:
    """Report that the speedup is not known to 10 % or better."""
    ladder = c.phase.ladder
    if ladder is None or ladder.realised_ci95 is None:
        return None
    low, high = ladder.realised_ci95
    if high - low < 0.2 * ladder.realised:
        return None
    return Found(
        text=f"the speedup is only known to lie between {low:.2f}× and {high:.2f}×"
        if high - low > ladder.realised
        else f"the speedup is only known to ±{percent((high - low) / 2 / ladder.realised)}",
        evidence=[f"95 % interval [{low:.3f}, {high:.3f}]"],
        change=_narrower(c),
    )


def _narrower(c: Context) -> str:
    """Say how to narrow the interval, by the options of the command or call that took samples."""
    if not c.phase.unprofiled_ns:
        return "more profiled steps, or unprofiled samples (prunescope trace)"
    if _is_recorded(c):
        return "record(..., repeats=40), or more, on a quiet machine"
    command = c.side.run is not None and c.side.run.argv
    if c.phase_run is not None and c.phase_run.interleaved == "alone" and not command:
        return "capture(..., placements=8, repeats=40), or more, on a quiet machine"
    return "more --placements and --repeats on a quiet machine"


def _is_recorded(c: Context) -> bool:
    """Return whether the candidate's run was taken by the recorder."""
    return c.side.run is not None and c.side.run.model.source == RECORDER


@finding("profiler-overhead", "warning")
def profiler_overhead(c: Context) -> Found | None:
    """Report that the profiler slows steps much, or the two runs unequally."""
    ratio = c.phase.profiler_overhead_ratio
    if ratio is None:
        return None
    dense = c.phase.baseline.profiler_overhead_ratio if c.phase.baseline else None
    is_unequal = dense is not None and max(ratio, dense) > MUCH_SLOWED * min(ratio, dense)
    if ratio < MUCH_SLOWED and not is_unequal:
        return None
    of_dense = f" (dense: {dense:.2f}×)" if dense is not None else ""
    unprofiled = c.phase.unprofiled_ns.median if c.phase.unprofiled_ns else 0
    caveat = "gaps and launch findings are uncertain"
    change = "rely on the ledger, which sums to the unprofiled time, not on the recorded gaps"
    if is_unequal:
        caveat = (
            "each side is rescaled to its own unprofiled time; the correction shows up in the "
            "kernel rows"
        )
        change = f"{'record' if _is_recorded(c) else 'trace'} again with {_narrower(c)}"
    return Found(
        severity="warning" if is_unequal else "info",
        text=f"a profiled step takes {ratio:.2f}× an unprofiled one{of_dense}: {caveat}",
        evidence=[f"profiled {ms(c.phase.wall_ns)}, unprofiled {ms(unprofiled)}"],
        change=change,
    )


@finding("above-peak", "info")
def above_peak(c: Context) -> Found | None:
    """Report that kernels beat the peaks: data was in a cache, or a peak is too low."""
    frame = c.kernels.frame
    # Where streams overlap, `busy` is the part of a kernel that no earlier kernel covers.
    took = "duration" if c.kernels.on_device else "busy"
    fast = frame.filter((frame["ideal"] > _ABOVE * frame[took]) & (frame["busy"] > 0))
    total = int(frame["busy"].sum())
    share = int(fast["busy"].sum()) / total if total else 0.0
    if share < 0.02:
        return None
    fast = fast.sort("busy", descending=True, maintain_order=True)
    kernels = fast.group_by("name", maintain_order=True).agg(
        pl.col(took, "ideal").first(), pl.len(), pl.col("busy").sum().alias("sum")
    )
    largest = kernels.sort("sum", descending=True, maintain_order=True).head(3)
    profiled = when(c.phase.is_slowed, " in the profile")
    is_measured = c.side.peaks is not None and c.side.peaks.measured
    measure = ", or measure the peaks (prunescope calibrate)"
    return Found(
        text=f"{percent(share)} of busy time is in kernels faster than the peaks allow: their data "
        f"was in a cache, or a peak is too low{when(is_measured, ', though it was measured')}",
        evidence=[
            f"{shortened(name)} × {count:,}: the longest takes {ms(ns)}{profiled}, its peaks need "
            f"{ms(ideal)}"
            for name, ns, ideal, count, _ in largest.iter_rows()
        ],
        change=f"time with a cold cache{when(not is_measured, measure)}",
    )


@finding("above-bound", "info", compares=True)
def above_bound(c: Context) -> Found | None:
    """Report that the speedup exceeds the roofline bound, with the ledger rows that explain it.

    Else, and without the peaks of the device, it exceeds its coverage bound.
    """
    ladder = c.phase.ladder if c.phase.is_speedup else None
    exceeded = _exceeded(ladder) if ladder is not None else None
    if ladder is None or exceeded is None:
        return None
    name, bound = exceeded
    share = ladder.realised / bound
    is_unmoved = c.phase.family is not None and c.phase.family.id == "dense"
    if is_unmoved and share <= _ABOVE:
        return None  # two captures of one model
    gains = [gain for gain in _gains_beyond(c, name) if gain[0].moves_ns < 0]
    total = sum(row.moves_ns for row, *_ in gains)
    reasons = {
        f"{row_name} {ms(row.moves_ns)}": why
        for row, why, row_name in gains
        if row.moves_ns <= _NAMED * total and is_beyond_noise(row)
    }
    has_none = ladder.realised_ci95 is None and c.phase.sampled is None
    if has_none and not reasons and not c.is_disturbed:
        return None  # of profiled steps without an interval, only what a row of the ledger proves
    why = "; ".join(reasons.values()) or "no ledger row beyond twice its noise explains it"
    if c.is_disturbed:
        why, reasons = "the times of this run are not valid, which may be the whole reason", {}
    return Found(
        text=f"realised {ladder.realised:.2f}× is {percent(share)} of the {name} bound: {why}",
        evidence=[f"{name} bound {bound:.2f}×", *reasons],
    )


def _exceeded(ladder: Ladder) -> tuple[str, float] | None:
    """Return the bound that the speedup exceeds, by more than rounding and beyond its interval.

    It is the roofline bound, else the coverage bound, which is lower where bytes fell by more than
    FLOPs; as its name and value.
    """
    ends = ladder.share_interval()
    low = (ladder.realised_ci95 or [ladder.realised])[0]
    if ends is not None and ladder.roofline:
        low = ends[0] * ladder.roofline
    for name, bound in (("roofline", ladder.roofline), ("coverage", ladder.coverage)):
        if bound and low > bound and ladder.realised > _ROUNDED * bound:
            return name, bound
    return None


def _gains_beyond(c: Context, bound: str) -> list[tuple[Row, str, str]]:
    """Return the ledger rows that a bound assumes unchanged, the largest gain first.

    Each comes with what it means where it is negative, and its name.
    """
    kernels, shape, idle = (c.row(name) for name in ("kernel_efficiency", "shape", "launch_idle"))
    shift = c.row("roofline_shift") if bound == "coverage" else None
    idles = "the device idles less" if c.kernels.on_device else "less time passes between ops"
    own = without_communication(kernels)
    gains = [
        (shift, "bytes fell by more than FLOPs", "roofline shift"),
        (own, _why_faster(c), "kernel efficiency without communication"),
        (communication(kernels), "communication takes less time or waits less", "communication"),
        (shape, "tiles and waves fit the pruned shapes better", "shape"),
        (idle, f"{idles} than in the dense run", "launch and idle"),
    ]
    rows = [(row, why, name) for row, why, name in gains if row is not None]
    return sorted(rows, key=lambda gain: gain[0].moves_ns)


def _why_faster(c: Context) -> str:
    """Say why the kernels of the pruned side are faster.

    No pruning gives that where most of the gain is in products that it did not touch.
    """
    row = c.row("kernel_efficiency")
    moved = {pair.key[1] for pair in c.pairs if not _is_as_before(pair)}
    parts = row.parts if row is not None else []
    as_before = [part for part in parts if part.cls in PRODUCTS and part.role not in moved]
    gain = sum(part.ns for part in as_before)
    if row is None or not gain < row.moves_ns / 2 < 0:
        return (
            "the pruned kernels are more efficient than the dense ones, or their data moved into a "
            "cache"
        )
    if c.phase.is_mostly_of_unknown_keys(row):
        return (
            "attention is shorter: the trace does not say how many keys it read; key eviction "
            "would look like this"
        )
    faster = [part.role for part in as_before if part.role is not None and part.ns < 0]
    return (
        f"{'kernels' if c.kernels.on_device else 'ops'} whose shapes did not move are faster "
        f"({', '.join(dict.fromkeys(faster[:3]))}: {ms(gain)}): another clock, other threads or "
        "libraries, or less other work on the machine, which no pruning gives"
    )


def _is_as_before(pair: Pair) -> bool:
    """Return whether a GEMM has the shape, the op and the number format of the dense one."""
    old, new = pair.dense, pair.pruned
    if old is None or new is None:
        return False
    return pair.axis == "none" and (old.op, old.dtype) == (new.op, new.dtype)


@finding("layer-alone", "info")
def layer_alone(c: Context) -> Found | None:
    """Report that one decoder layer ran alone, so that no time is that of the model."""
    sums = c.phase.closure
    if sums is msgspec.UNSET or not sums:
        return None
    return Found(
        text="one decoder layer ran alone: every time and speedup is of that layer, not of the "
        "model",
        evidence=[
            f"{name}: {layer.layers} × layer {layer.layer} ({ms(layer.layer_ns)}) and the rest "
            f"({ms(layer.rest_ns)}) are {layer.text} of the whole model ({ms(layer.whole_ns)})"
            for name, layer in sums.items()
        ],
    )


@finding("carry-over", "info")
def carry_over(c: Context) -> Found | None:
    """Report that the trace contains device events of the step before it."""
    earlier = c.phase.carry_over
    device = earlier["ns"] + c.phase.busy_ns * c.phase.steps
    if not earlier["events"] or earlier["ns"] < 0.01 * device:
        return None
    share = earlier["ns"] / device
    return Found(
        text=f"{earlier['events']:.0f} device events ({percent(share, 1)} of device "
        "time) are carry-over from the step before, and are left out",
        evidence=[f"{ms(earlier['ns'])} were launched before the trace began"],
        change="synchronise before the profiler starts",
    )


@finding("nominal-differs", "info", compares=True)
def nominal_differs(c: Context) -> Found | None:
    """Report that the nominal sparsity differs from what was removed."""
    nominal, shares = c.phase.sparsity.get("nominal"), _removed(c)
    if not nominal or not shares:
        return None
    if all(abs(share - nominal) <= _OFF * nominal for share in shares.values()):
        return None
    removed, grown = [], []
    for name, share in shares.items():
        if share > -_GREW:
            removed.append(f"{percent(abs(share), 1)} of the {name}")
        else:
            grown.append(f"the {name} grew by {percent(-share, 1)}")
    parts = [f"nominal sparsity is {percent(nominal, 1)}"]
    if removed:
        parts.append(f"removed were {', '.join(removed)}")
    return Found(
        text="; ".join([*parts, *grown]),
        evidence=[_why_it_differs(c, list(shares.values()), nominal)],
        change="report the nominal and the removed share, and compare methods at equal FLOPs or "
        "parameters",
    )


def _removed(c: Context) -> dict[str, float]:
    """Return the shares of parameters, FLOPs and bytes that were removed, where they are known."""
    shares = {name: c.phase.sparsity.get(key) for key, name in _SHARES.items()}
    return {name: share for name, share in shares.items() if share is not None}


@finding(SWAPPED_SIDES, "warning", compares=True)
def swapped_sides(c: Context) -> Found | None:
    """Report that the pruned side is larger in everything: the sides may have been swapped."""
    removed = c.phase.sparsity
    shares = [share for name, share in removed.items() if name != "nominal" and share is not None]
    if not shares or any(share > -_GREW for share in shares) or not _has_larger_gemms(c):
        return None
    grown = [f"{percent(-share, 1)} more {name}" for name, share in _removed(c).items()]
    lines = [f"pruned: {c.side.path.name}"]
    if c.baseline_side is not None:
        lines.append(f"dense: {c.baseline_side.path.name}")
    return Found(
        text=f"the pruned side has {' and '.join(grown)} than the dense one: are the two sides "
        "swapped?",
        evidence=lines,
        change="give the dense trace as --baseline, and the pruned one as the trace to analyse",
    )


@finding(MISLABELLED, "critical")
def mislabelled_sides(c: Context) -> Found | None:
    """Report that a run lies in the folder of the other side, or stands for it.

    Its run.json says which side it is.
    """
    lines = []
    for stands_for, side in (("pruned", c.side), ("dense", c.baseline_side)):
        if side is None or side.run is None:
            continue
        variant, folder = side.run.variant, side.path.name
        if variant not in _VARIANTS:
            continue
        if folder in _VARIANTS and folder != variant:
            lines.append(f"{folder}/run.json says that it is the {variant} run")
        elif c.baseline_side is not None and variant != stands_for and _are_crossed(c):
            lines.append(f"the run that stands for the {stands_for} one is the {variant} one")
    if not lines:
        return None
    return Found(
        text=f"dense and pruned are mixed up: {lines[0]}",
        evidence=lines,
        change="give each run the name that its run.json has, or give the dense run as --baseline",
    )


def _are_crossed(c: Context) -> bool:
    """Return whether the dense run stands for the pruned one, and the pruned one for the dense."""
    runs = (c.side.run, None if c.baseline_side is None else c.baseline_side.run)
    return tuple(None if run is None else run.variant for run in runs) == _VARIANTS


def _has_larger_gemms(c: Context) -> bool:
    """Return whether GEMMs or layers grew, and nothing shrank.

    GEMMs have larger N, K or M than their dense partners, or whole layers were added. Adapters,
    masks and maps add work and leave GEMMs as they were.
    """
    grew = False
    for pair in c.evidence.pairs if c.evidence is not None else []:
        if pair.pruned is None:
            return False
        if pair.dense is None:
            grew |= pair.key[0] is not None and pair.key[0] < 0
            continue
        old, new = pair.dense.gemm, pair.pruned.gemm
        if old is not None and new is not None:
            if new.n < old.n or new.k < old.k or new.m < old.m or new.batch < old.batch:
                return False
            grew |= new != old
    return grew


def _why_it_differs(c: Context, shares: list[float], nominal: float) -> str:
    """Say why the removed shares are larger or smaller than the nominal one."""
    if c.side.run is None:
        return "the nominal share was given; the others are counted from the ops of both traces"
    if all(share < _GREW for share in shares):
        return (
            "nothing was removed: hiding work (masks, skipped steps) or adding work (adapters) "
            "removes neither weights nor FLOPs"
        )
    verdict = c.phase.family
    if verdict is not None and any(family.changes_experts for family in known(verdict.ids)):
        return (
            "a token goes through as many experts as before where experts were removed, and no "
            "parameter was removed where it goes through fewer: parameters, FLOPs and bytes fall "
            "by different shares"
        )
    # The alignments to which the run's families rounded kept dimensions up.
    pruning = c.side.run.pruning
    parts = (pruning.parts or [pruning]) if pruning is not None else []
    aligned = [str((part.knobs or {}).get("align", ALIGN)) for part in parts] or [ALIGN]
    words = " or ".join(dict.fromkeys(map(aligned_words, aligned)))
    rounding = f"rounding to whole heads, layers and {words}"
    if all(share <= nominal for share in shares):
        return (
            f"unpruned parts (embeddings, lm_head and the like) and {rounding} make the difference"
        )
    return f"{rounding} makes the difference, and so does the base that s is a share of"


@finding("unsteady-clocks", "warning")
def unsteady_clocks(c: Context) -> Found | None:
    """Report that clocks changed while samples were taken, or differ between the two runs."""
    (dense, dense_after), (pruned, pruned_after) = _clocks(c.baseline_side), _clocks(c.side)
    comparisons = (
        ("dense: ", dense, "before", dense_after, "after"),
        ("pruned: ", pruned, "before", pruned_after, "after"),
        ("", dense, "in the dense run", pruned, "in the pruned one"),
    )
    lines = [
        f"{label}{key.removesuffix('_hz').replace('_', ' ')} clock {first[key] / 1e9:.2f} GHz "
        f"{where}, {second[key] / 1e9:.2f} GHz {elsewhere}"
        for label, first, where, second, elsewhere in comparisons
        for key in first.keys() & second.keys()
        if _differ(first[key], second[key])
    ]
    lines += _sampled(c)
    if not lines:
        return None
    return Found(
        text="the clocks were not steady: times at different clocks are compared",
        evidence=sorted(set(lines))[:4],
        change="lock the clocks, let the device warm up longer, and trace again",
    )


def _sampled(c: Context) -> list[str]:
    """Describe unsteady clocks by the samples that the traces hold, and the mean power."""
    clocks = {label or "pruned: ": side.kernels.profiler.sampled_clock for label, side in c.sides}
    sampled = {label: clock for label, clock in clocks.items() if clock}
    medians = [clock.median for clock in sampled.values()]
    moved = any(_differ(clock.low, clock.high) for clock in sampled.values())
    if not moved and not (len(medians) > 1 and _differ(*medians)):
        return []
    return [
        f"{label}clock {clock.low / 1e9:.2f} to {clock.high / 1e9:.2f} GHz in the steps (median "
        f"{clock.median / 1e9:.2f}), by {clock.samples:,} samples"
        + ("" if clock.power is None else f"; power {clock.power:,.0f} W in the mean")
        for label, clock in sampled.items()
    ]


def _clocks(side: Side | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return the clocks of a run in Hz by name, before and after the samples."""
    clocks = side.run.device.clocks if side is not None and side.run else None
    readings = (clocks.before, clocks.after) if clocks is not None else (None, None)
    before, after = (
        {name: hz for name, hz in (reading or {}).items() if hz > 0} for reading in readings
    )
    return before, after


def _differ(first: float, second: float) -> bool:
    return abs(first - second) > _CLOCK * max(first, second)
