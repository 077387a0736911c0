"""Whether the measured times can be trusted: noise, profiler overhead, peaks, carry-over, clocks,
and the sparsity that was promised.

In: a Context. Out: Found, or None. Times are ns a step, shares 0..1, clocks Hz.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context, communication, without_communication
from prunescope.analysis.findings.interruptions import hide_the_work
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.inputs.side import Side
from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import (
    MUCH_SLOWED,
    NOT_VALID,
    SWAPPED_SIDES,
    UNCERTAIN_CONFIG,
    Ladder,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.taxonomy.families import known
from prunescope.taxonomy.keep import ALIGN, aligned_words
from prunescope.taxonomy.runs.run import RECORDER, PhaseRun
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.words import ms, percent, shortened

_WIDE = 0.5  # 10th to 90th percentile ÷ median from which samples are too wide
_FEW = 3  # samples; fewer have no percentiles
_ROUNDED = 1.005  # times a bound: less prints as the bound
_ABOVE = 1.05  # times a peak or bound from which it is exceeded
_NAMED = 0.1  # of the gain beyond the bound: a ledger row worth naming
_OFF = 0.1  # of the nominal sparsity: a difference worth a finding
_GREW = 0.0005  # a share that does not round to 0.0 %
_CLOCK = 0.05  # relative difference of clocks worth a finding


@finding(NOT_VALID, "critical")
def timing_not_valid(c: Context) -> Found | None:
    """Something else ran while samples were taken, or they vary by half of their median. Without
    samples, on a CPU: interruptions hold most of a step, or half of what two steps differ by."""
    lines = []
    for name, run in (("dense", c.baseline_phase_run), ("pruned", c.phase_run)):
        if run is not None:
            side = f"{name}: " if c.baseline is not None else ""
            lines += [f"{side}{line}" for line in _disturbed(run)]
    lines += [*_wide(c), *hide_the_work(c)]
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
    """The tiles of a GEMM do not fit the config that the shapes come from."""
    lines = []
    for name, kernels in (("dense", c.baseline_kernels), ("pruned", c.kernels)):
        if kernels is not None:
            lines += [f"{name}: {line}" if c.baseline else line for line in kernels.shapes.caveats]
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
    """Samples that vary by half of their median. Where the two runs took turns, the ratios of their
    samples: a machine that slows down and recovers changes both alike."""
    dense, pruned = c.baseline_phase_run, c.phase_run
    if dense is not None and pruned is not None and _took_turns(dense, pruned):
        ratios = np.divide(dense.samples_ns, pruned.samples_ns)
        low, mid, high = np.percentile(ratios, [10, 50, 90])
        line = f"dense ÷ pruned, sample by sample: 10th to 90th percentile {low:.2f} to {high:.2f}×"
        return [f"{line}, median {mid:.2f}×"] * bool(high - low > _WIDE * mid)
    lines = []
    for name, run in (("dense", dense), ("pruned", pruned)):
        if run is None or len(run.samples_ns) < _FEW:
            continue
        side = f"{name}: " if c.baseline is not None else ""
        low, mid, high = np.percentile(run.samples_ns, [10, 50, 90])
        if high - low > _WIDE * mid:
            lines.append(f"{side}10th to 90th percentile {ms(low)} to {ms(high)}, median {ms(mid)}")
    return lines


def _took_turns(dense: PhaseRun, pruned: PhaseRun) -> bool:
    """Whether the samples of the two runs were taken alternately, one by one."""
    alike = dense.interleaved == pruned.interleaved == "alternating"
    return alike and len(dense.samples_ns) == len(pruned.samples_ns) >= _FEW


def _disturbed(run: PhaseRun) -> list[str]:
    """How many of the kept samples and profiled steps were disturbed, and by what, where these are
    too many."""
    lines = []
    if run.has_disturbed_steps:
        steps = sum(one.steps for one in run.placements if one.steps_disturbed)
        why = dict.fromkeys(why for one in run.placements for why in one.steps_disturbed)
        lines.append(f"{steps} of {run.steps} profiled steps disturbed: {', '.join(why)}")
    if not run.has_disturbed_samples:
        return lines
    kept, total = sum(placement.disturbed for placement in run.placements), len(run.samples_ns)
    reasons = dict.fromkeys(why for placement in run.placements for why in placement.reasons)
    # The steps of a user's own loop are not taken again.
    again = "" if run.interleaved == "alone" else ", though taken again"
    return [f"{kept} of {total} samples disturbed{again}: {', '.join(reasons)}", *lines]


@finding("no-speedup", "critical", needs_valid_times=True, compares=True)
def no_speedup(c: Context) -> Found | None:
    """The interval of the speedup contains 1."""
    ladder = c.phase.ladder
    if ladder is None or ladder.realised_ci95 is None:
        return None
    if not ladder.holds_one or c.phase.family is None or c.phase.family.id == "dense":
        return None
    low, high = ladder.realised_ci95
    return Found(
        text=f"no speedup beyond noise: {ladder.realised:.3f}× [{low:.3f}, {high:.3f}]",
        evidence=[_interval_of(c.phase)],
    )


def _interval_of(phase: Phase) -> str:
    """The samples behind the interval of the realised speedup."""
    if phase.sampled is None:
        return f"95 % bootstrap interval of the walls of {phase.steps} profiled steps"
    dense, pruned = phase.sampled
    if dense.placements and pruned.placements and len(dense.placements) == len(pruned.placements):
        return f"95 % interval over {len(pruned.placements)} placements"
    kind = "interval" if dense.placements and pruned.placements else "bootstrap interval"
    return f"95 % {kind} of {dense.in_words} (dense) ÷ {pruned.in_words} (pruned)"


@finding("wide-interval", "warning", compares=True)
def wide_interval(c: Context) -> Found | None:
    """The speedup is not known to 10 % or better."""
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
    """How to narrow the interval, by the options of the command or call that took the samples."""
    if not c.phase.unprofiled_ns:
        return "more profiled steps, or unprofiled samples (prunescope trace)"
    command = c.side.run is not None and c.side.run.argv
    if c.side.run is not None and c.side.run.model.source == RECORDER:
        return "record(..., repeats=40), or more, on a quiet machine"
    if c.phase_run is not None and c.phase_run.interleaved == "alone" and not command:
        return "capture(..., placements=8, repeats=40), or more, on a quiet machine"
    return "more --placements and --repeats on a quiet machine"


@finding("profiler-overhead", "warning")
def profiler_overhead(c: Context) -> Found | None:
    """Profiled steps are much slower than others, or the profiler slows the two runs unequally."""
    ratio = c.phase.profiler_overhead_ratio
    if ratio is None:
        return None
    dense = c.phase.baseline.profiler_overhead_ratio if c.phase.baseline else None
    unequal = dense is not None and max(ratio, dense) > MUCH_SLOWED * min(ratio, dense)
    if ratio < MUCH_SLOWED and not unequal:
        return None
    other = f" (dense: {dense:.2f}×)" if dense is not None else ""
    by_recorder = c.side.run is not None and c.side.run.model.source == RECORDER
    again = "record again" if by_recorder else "trace again"
    caveat = (
        "each side is rescaled to its own unprofiled time; the correction shows up in the kernel "
        "rows"
        if unequal
        else "gaps and launch findings are uncertain"
    )
    return Found(
        severity="warning" if unequal else "info",
        text=f"a profiled step takes {ratio:.2f}× an unprofiled one{other}: {caveat}",
        evidence=[
            f"profiled {ms(c.phase.wall_ns)}, unprofiled "
            f"{ms(c.phase.unprofiled_ns.median if c.phase.unprofiled_ns else 0)}"
        ],
        change=f"{again} with {_narrower(c)}"
        if unequal
        else "rely on the ledger, which sums to the unprofiled time, not on the recorded gaps",
    )


@finding("above-peak", "info")
def above_peak(c: Context) -> Found | None:
    """Kernels are faster than the peaks allow: data was in a cache, or a peak is too low."""
    frame = c.kernels.frame
    # Where streams overlap, `busy` is the part of a kernel that no earlier kernel covers.
    took = "duration" if c.kernels.on_device else "busy"
    is_fast = (frame["ideal"] > _ABOVE * frame[took]) & (frame["busy"] > 0)
    total = int(frame["busy"].sum())
    share = int(frame["busy"].filter(is_fast).sum()) / total if total else 0.0
    if share < 0.02:
        return None
    fast = frame.filter(is_fast)
    shown = (
        fast.sort("busy", descending=True, maintain_order=True)
        .group_by("name", maintain_order=True)
        .agg(
            pl.col(took).first().alias("took"),
            pl.col("ideal").first(),
            pl.len(),
            pl.col("busy").sum().alias("sum"),
        )
        .sort("sum", descending=True, maintain_order=True)
    )
    profiled = " in the profile" * c.phase.is_slowed
    lines = [
        f"{shortened(r['name'])} × {r['len']:,}: the longest takes {ms(r['took'])}{profiled}, its "
        f"peaks need {ms(r['ideal'])}"
        for r in shown.head(3).iter_rows(named=True)
    ]
    measured = c.side.peaks is not None and c.side.peaks.measured
    change = "time with a cold cache" + ("" if measured else ", or measure the peaks")
    return Found(
        text=f"{percent(share)} of busy time is in kernels faster than the peaks allow: their data "
        f"was in a cache, or a peak is too low{', though it was measured' * measured}",
        evidence=lines,
        change=change + ("" if measured else " (prunescope calibrate)"),
    )


@finding("above-bound", "info", compares=True)
def above_bound(c: Context) -> Found | None:
    """The speedup exceeds the roofline bound; the ledger rows that explain it are named.

    Else, and without the peaks of the device, its coverage bound.
    """
    ladder = c.phase.ladder if c.phase.is_speedup else None
    exceeded = _exceeded(ladder) if ladder is not None else None
    if ladder is None or exceeded is None:
        return None
    name, bound = exceeded
    share = ladder.realised / bound
    unmoved = c.phase.family is not None and c.phase.family.id == "dense"
    if unmoved and share <= _ABOVE:
        return None  # two captures of one model
    gains = [one for one in _beyond(c, name) if one[0].moves_ns < 0]
    total = sum(row.moves_ns for row, _, _ in gains)
    reasons = [
        (why, f"{name} {ms(row.moves_ns)}")
        for row, why, name in gains
        if row.moves_ns <= _NAMED * total and is_beyond_noise(row)
    ]
    has_none = ladder.realised_ci95 is None and c.phase.sampled is None
    if has_none and not reasons and not c.is_disturbed:
        return None  # of profiled steps without an interval, only what a row of the ledger proves
    why = "; ".join(why for why, _ in reasons) or "no ledger row beyond twice its noise explains it"
    if c.is_disturbed:
        why, reasons = "the times of this run are not valid, which may be the whole reason", []
    return Found(
        text=f"realised {ladder.realised:.2f}× is {percent(share)} of the {name} bound: {why}",
        evidence=[f"{name} bound {bound:.2f}×", *(line for _, line in reasons)],
    )


def _exceeded(ladder: Ladder) -> tuple[str, float] | None:
    """Name and value of the bound that the speedup exceeds, by more than rounding and beyond its
    interval: the roofline bound, else the coverage bound, which is lower where bytes fell by more
    than FLOPs."""
    ends = ladder.share_interval()
    low = (ladder.realised_ci95 or [ladder.realised])[0]
    if ends is not None and ladder.roofline:
        low = ends[0] * ladder.roofline
    for name, bound in (("roofline", ladder.roofline), ("coverage", ladder.coverage)):
        if bound and low > bound and ladder.realised > _ROUNDED * bound:
            return name, bound
    return None


def _beyond(c: Context, bound: str) -> list[tuple[Row, str, str]]:
    """Ledger rows that a bound assumes unchanged, what each means where it is negative, and its
    name; the largest gain first."""
    kernels, shape, idle = (c.row(n) for n in ("kernel_efficiency", "shape", "launch_idle"))
    shift = c.row("roofline_shift") if bound == "coverage" else None
    idles = "the device idles less" if c.kernels.on_device else "less time passes between ops"
    found = [
        (shift, "bytes fell by more than FLOPs", "roofline shift"),
        (
            without_communication(kernels),
            _why_faster(c),
            "kernel efficiency without communication",
        ),
        (communication(kernels), "communication takes less time or waits less", "communication"),
        (shape, "tiles and waves fit the pruned shapes better", "shape"),
        (idle, f"{idles} than in the dense run", "launch and idle"),
    ]
    known = [(row, why, name) for row, why, name in found if row is not None]
    return sorted(known, key=lambda one: one[0].moves_ns)


def _why_faster(c: Context) -> str:
    """Why the kernels of the pruned side are faster: what no pruning gives, where most of the gain
    is in products that it did not touch."""
    row = c.row("kernel_efficiency")
    moved = {pair.key[1] for pair in c.pairs or () if not _is_as_before(pair)}
    as_before = [
        part
        for part in (row.parts if row is not None else ())
        if part.cls in PRODUCTS and part.role not in moved
    ]
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
    what = "kernels" if c.kernels.on_device else "ops"
    faster = [part.role for part in as_before if part.role is not None and part.ns < 0]
    names = ", ".join(dict.fromkeys(faster[:3]))
    return (
        f"{what} whose shapes did not move are faster ({names}: {ms(gain)}): another clock, "
        "other threads or libraries, or less other work on the machine, which no pruning gives"
    )


def _is_as_before(pair: Pair) -> bool:
    """Whether a GEMM has the shape, the op and the number format of the dense one."""
    one, other = pair.dense, pair.pruned
    same = one is not None and other is not None and (one.op, one.dtype) == (other.op, other.dtype)
    return same and pair.axis == "none"


@finding("layer-alone", "info")
def layer_alone(c: Context) -> Found | None:
    """One decoder layer ran alone, so that no time is that of the model."""
    sums = c.phase.closure
    if sums is msgspec.UNSET or not sums:
        return None
    return Found(
        text="one decoder layer ran alone: every time and speedup is of that layer, not of the "
        "model",
        evidence=[
            f"{name}: {one.layers} × layer {one.layer} ({ms(one.layer_ns)}) and the rest "
            f"({ms(one.rest_ns)}) are {one.text} of the whole model ({ms(one.whole_ns)})"
            for name, one in sums.items()
        ],
    )


@finding("carry-over", "info")
def carry_over(c: Context) -> Found | None:
    """The trace contains device events of the step before it."""
    found = c.phase.carry_over
    device = found["ns"] + c.phase.busy_ns * c.phase.steps
    if not found["events"] or found["ns"] < 0.01 * device:
        return None
    return Found(
        text=f"{found['events']:.0f} device events ({percent(found['ns'] / device, 1)} of device "
        "time) are carry-over from the step before, and are left out",
        evidence=[f"{ms(found['ns'])} were launched before the trace began"],
        change="synchronise before the profiler starts",
    )


@finding("nominal-differs", "info", compares=True)
def nominal_differs(c: Context) -> Found | None:
    """The nominal sparsity differs from what was removed."""
    shares = c.phase.sparsity
    nominal = shares.get("nominal")
    names = (("parameters", "parameters"), ("flop", "FLOPs"), ("bytes", "bytes"))
    known = [(label, share) for key, label in names if (share := shares.get(key)) is not None]
    if not nominal or not known:
        return None
    if all(abs(share - nominal) <= _OFF * nominal for _, share in known):
        return None
    removed = [f"{percent(abs(share), 1)} of the {name}" for name, share in known if share > -_GREW]
    parts = [f"removed were {', '.join(removed)}"] if removed else []
    parts += [
        f"the {name} grew by {percent(-share, 1)}" for name, share in known if share <= -_GREW
    ]
    return Found(
        text="; ".join([f"nominal sparsity is {percent(nominal, 1)}", *parts]),
        evidence=[_why_it_differs(c, [share for _, share in known], nominal)],
        change="report the nominal and the removed share, and compare methods at equal FLOPs or "
        "parameters",
    )


@finding(SWAPPED_SIDES, "warning", compares=True)
def swapped_sides(c: Context) -> Found | None:
    """The pruned side is larger than the dense one in everything: they may have been swapped."""
    shares = [share for name, share in c.phase.sparsity.items() if name != "nominal"]
    known = [share for share in shares if share is not None]
    if not known or any(share > -_GREW for share in known) or not _has_larger_gemms(c):
        return None
    names = (("parameters", "parameters"), ("flop", "FLOPs"), ("bytes", "bytes"))
    grown = [
        f"{percent(-share, 1)} more {label}"
        for key, label in names
        if (share := c.phase.sparsity.get(key)) is not None
    ]
    return Found(
        text=f"the pruned side has {' and '.join(grown)} than the dense one: are the two sides "
        "swapped?",
        evidence=[
            f"pruned: {c.side.path.name}",
            *([] if c.baseline_side is None else [f"dense: {c.baseline_side.path.name}"]),
        ],
        change="give the dense trace as --baseline, and the pruned one as the trace to analyse",
    )


def _has_larger_gemms(c: Context) -> bool:
    """Whether GEMMs have larger N, K or M than their dense partners, or whole layers were added,
    and nothing shrank: adapters, masks and maps add work and leave GEMMs as they were."""
    pairs = c.evidence.pairs if c.evidence is not None else []
    grew = False
    for pair in pairs:
        old = pair.dense.gemm if pair.dense is not None else None
        new = pair.pruned.gemm if pair.pruned is not None else None
        if pair.pruned is None:
            return False
        if pair.dense is None:
            grew |= pair.key[0] is not None and pair.key[0] < 0
        elif old is not None and new is not None:
            if new.n < old.n or new.k < old.k or new.m < old.m or new.batch < old.batch:
                return False
            grew |= new != old
    return grew


def _why_it_differs(c: Context, shares: list[float], nominal: float) -> str:
    """Why the removed shares are larger or smaller than the nominal one."""
    if c.side.run is None:
        return "the nominal share was given; the others are counted from the ops of both traces"
    if all(share < _GREW for share in shares):
        return (
            "nothing was removed: hiding work (masks, skipped steps) or adding work (adapters) "
            "removes neither weights nor FLOPs"
        )
    family = c.phase.family
    if family is not None and any(one.changes_experts for one in known(family.ids)):
        return (
            "a token goes through as many experts as before where experts were removed, and no "
            "parameter was removed where it goes through fewer: parameters, FLOPs and bytes fall "
            "by different shares"
        )
    rounding = f"rounding to whole heads, layers and {_aligned_words(c.side.run.pruning)}"
    if all(share <= nominal for share in shares):
        return (
            f"unpruned parts (embeddings, lm_head and the like) and {rounding} make the difference"
        )
    return f"{rounding} makes the difference, and so does the base that s is a share of"


def _aligned_words(pruning: Pruning | None) -> str:
    """The alignments to which the run's families rounded kept dimensions up, in words."""
    families = (pruning.parts or [pruning]) if pruning is not None else []
    asked = [str((one.knobs or {}).get("align", ALIGN)) for one in families] or [ALIGN]
    return " or ".join(dict.fromkeys(map(aligned_words, asked)))


@finding("unsteady-clocks", "warning")
def unsteady_clocks(c: Context) -> Found | None:
    """Clocks changed while samples were taken, or differ between the two runs."""
    clocks = [
        (name, _clocks(side)) for name, side in (("dense", c.baseline_side), ("pruned", c.side))
    ]
    lines = []
    for name, (before, after) in clocks:
        lines += [
            f"{name}: {_named(key)} clock {before[key] / 1e9:.2f} GHz before, "
            f"{after[key] / 1e9:.2f} GHz after"
            for key in before.keys() & after.keys()
            if _differ(before[key], after[key])
        ]
    dense, pruned = clocks[0][1][0], clocks[1][1][0]
    lines += [
        f"{_named(key)} clock {dense[key] / 1e9:.2f} GHz in the dense run, "
        f"{pruned[key] / 1e9:.2f} GHz in the pruned one"
        for key in sorted(dense.keys() & pruned.keys())
        if _differ(dense[key], pruned[key])
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
    """Unsteady clocks by the samples that the traces hold, and the mean power."""
    sides = [("dense", c.baseline_kernels), ("pruned", c.kernels)]
    found = [
        (name, k.profiler.sampled_clock) for name, k in sides if k and k.profiler.sampled_clock
    ]
    moved = any(_differ(one.low, one.high) for _, one in found)
    medians = [one.median for _, one in found]
    if not moved and not (len(found) > 1 and _differ(*medians)):
        return []
    return [
        f"{name}: clock {one.low / 1e9:.2f} to {one.high / 1e9:.2f} GHz in the steps (median "
        f"{one.median / 1e9:.2f}), by {one.samples:,} samples"
        + ("" if one.power is None else f"; power {one.power:,.0f} W in the mean")
        for name, one in found
    ]


def _clocks(side: Side | None) -> tuple[dict[str, float], dict[str, float]]:
    """Clocks in Hz by name, before and after the samples."""
    found = side.run.device.clocks if side is not None and side.run else None
    return ({}, {}) if found is None else (_numbers(found.before), _numbers(found.after))


def _numbers(clocks: Any) -> dict[str, float]:
    pairs = clocks.items() if isinstance(clocks, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and v > 0}


def _named(key: str) -> str:
    return key.removesuffix("_hz").replace("_", " ")


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > _CLOCK * max(a, b)
