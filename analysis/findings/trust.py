"""Whether the numbers can be trusted: noise, observer, peaks, spill, busy machines."""

from __future__ import annotations

import numpy as np

from prunescope.analysis.findings.context import (
    Context,
    communication,
    ms,
    shortened,
    without_communication,
)
from prunescope.analysis.schema.report import (
    CLOCKS_APART,
    Finding,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.taxonomy.run import PhaseRun
from prunescope.taxonomy.words import percent

_OBSERVER = 1.3
_WIDE = 0.5  # 10th to 90th percentile, of the median
_FEW = 3  # samples
_FLAGGED = 1.05
_BLAMED = 0.1  # of what a run gained beyond its bound: a reason worth naming


def no_speedup(c: Context) -> Finding | None:
    """The interval of the speedup holds 1."""
    ladder = c.phase.ladder
    if ladder is None or ladder.realised_ci95 is None:
        return None
    low, high = ladder.realised_ci95
    if not low <= 1 <= high or c.phase.family is None or c.phase.family.id == "dense":
        return None
    return Finding(
        id="no-speedup",
        severity="critical",
        text=f"no speedup can be told from noise: {ladder.realised:.3f}× [{low:.3f}, {high:.3f}]",
        evidence=[_interval_of(c.phase)],
        change=None,
        predicted_ns=None,
    )


def _interval_of(phase: Phase) -> str:
    """What the interval of the realised speedup is one of: of each side, in its own words."""
    if phase.sampled is None:
        return f"95 % bootstrap interval of the walls of {phase.steps} profiled steps"
    dense, pruned = phase.sampled
    if dense.placements and pruned.placements and len(dense.placements) == len(pruned.placements):
        return f"95 % interval over {len(pruned.placements)} placements"
    kind = "interval" if dense.placements and pruned.placements else "bootstrap interval"
    return f"95 % {kind} of {dense.in_words} (dense) ÷ {pruned.in_words} (pruned)"


def wide_interval(c: Context) -> Finding | None:
    """The speedup is known to no better than 10 %."""
    ladder = c.phase.ladder
    if ladder is None or ladder.realised_ci95 is None:
        return None
    low, high = ladder.realised_ci95
    if high - low < 0.2 * ladder.realised:
        return None
    return Finding(
        id="wide-interval",
        severity="warning",
        text=f"the speedup is known to lie between {low:.2f}× and {high:.2f}× only"
        if high - low > ladder.realised
        else f"the speedup is known to ±{percent((high - low) / 2 / ladder.realised)} only",
        evidence=[f"95 % interval [{low:.3f}, {high:.3f}]"],
        change=_narrower(c),
        predicted_ns=None,
    )


def _narrower(c: Context) -> str:
    """What would narrow an interval, in the words of what took the samples."""
    if not c.phase.unprofiled_ns:
        return "more profiled steps, or unprofiled samples (prunescope trace)"
    command = c.side.run is not None and c.side.run.argv
    if c.run is not None and c.run.interleaved == "alone" and not command:
        return "capture(..., placements=8, repeats=40), or more, on a quiet machine"
    return "more --placements and --repeats on a quiet machine"


def timing_not_valid(c: Context) -> Finding | None:
    """Something else was seen to run beside the samples, even when they were taken again; or what
    the speedup is made of varies by half of its median, which nothing else does."""
    lines = []
    for name, run in (("dense", c.run_dense), ("pruned", c.run)):
        if run is not None:
            what = f"{name}: " if c.twin is not None else ""
            lines += [f"{what}{said}" for said in _disturbed(run)]
    lines += _wide(c)
    if not lines:
        return None
    return Finding(
        id="timing-not-valid",
        severity="critical",
        text="timing not valid: something else ran beside what was timed, or the samples are too "
        "wide for a speedup",
        evidence=lines,
        change="stop what else runs on this machine, and trace again",
        predicted_ns=None,
    )


def _wide(c: Context) -> list[str]:
    """Samples that vary by half of their median. Of sides that took turns it is their ratios,
    sample by sample: a machine that slows down and recovers moves both alike."""
    dense, pruned = c.run_dense, c.run
    if dense is not None and pruned is not None and _took_turns(dense, pruned):
        ratios = np.divide(dense.samples_ns, pruned.samples_ns)
        low, mid, high = np.percentile(ratios, [10, 50, 90])
        said = f"dense ÷ pruned, sample by sample: 10th to 90th percentile {low:.2f} to {high:.2f}×"
        return [f"{said}, median {mid:.2f}×"] * bool(high - low > _WIDE * mid)
    lines = []
    for name, run in (("dense", dense), ("pruned", pruned)):
        if run is None or len(run.samples_ns) < _FEW:
            continue
        what = f"{name}: " if c.twin is not None else ""
        low, mid, high = np.percentile(run.samples_ns, [10, 50, 90])
        if high - low > _WIDE * mid:
            lines.append(f"{what}10th to 90th percentile {ms(low)} to {ms(high)}, median {ms(mid)}")
    return lines


def _took_turns(dense: PhaseRun, pruned: PhaseRun) -> bool:
    """Whether sample i of the one was taken beside sample i of the other."""
    alike = dense.interleaved == pruned.interleaved == "alternating"
    return alike and len(dense.samples_ns) == len(pruned.samples_ns) >= _FEW


def _disturbed(run: PhaseRun) -> list[str]:
    """How many of the samples kept were disturbed, where it is more than a few, and by what; and
    of the profiled steps, where it is most."""
    said = []
    if run.has_disturbed_steps:
        steps = sum(one.steps for one in run.placements if one.steps_disturbed)
        why = dict.fromkeys(why for one in run.placements for why in one.steps_disturbed)
        said.append(f"{steps} of {run.steps} profiled steps disturbed: {', '.join(why)}")
    if not run.has_disturbed_samples:
        return said
    kept, total = sum(placement.disturbed for placement in run.placements), len(run.samples_ns)
    reasons = dict.fromkeys(why for placement in run.placements for why in placement.reasons)
    # The steps of a user's loop are not run again.
    again = "" if run.interleaved == "alone" else ", though taken again"
    return [f"{kept} of {total} samples disturbed{again}: {', '.join(reasons)}", *said]


def observer(c: Context) -> Finding | None:
    """Profiled steps are so much slower than the others that gaps say little, or profiling moved
    the two sides apart."""
    ratio = c.phase.observer_ratio
    if ratio is None:
        return None
    dense = c.phase.baseline.observer_ratio if c.phase.baseline else None
    apart = dense is not None and max(ratio, dense) > _OBSERVER * min(ratio, dense)
    if ratio < _OBSERVER and not apart:
        return None
    other = f" (dense: {dense:.2f}×)" if dense is not None else ""
    doubtful = (
        "the ledger scales each side to its own, and what that moves is in its rows of kernels"
        if apart
        else "gaps and launch verdicts are doubtful"
    )
    return Finding(
        id="observer-effect",
        severity="warning" if apart else "info",
        text=f"a profiled step takes {ratio:.2f}× an unprofiled one{other}: {doubtful}",
        evidence=[
            f"profiled {ms(c.phase.wall_ns)}, unprofiled "
            f"{ms(c.phase.unprofiled_ns.median if c.phase.unprofiled_ns else 0)}"
        ],
        change="trace again on a quiet machine, with more --placements"
        if apart
        else "read the ledger, which closes to the unprofiled wall, not the recorded gaps",
        predicted_ns=None,
    )


def clocks_apart(c: Context) -> Finding | None:
    """Kernels start before they are launched: what waited for what cannot be told."""
    apart = c.pruned.apart
    if apart is None:
        return None
    return Finding(
        id=CLOCKS_APART,
        severity="warning",
        text="the clocks of host and device are apart: causes of idle time and launch delays are "
        "not to be trusted",
        evidence=[apart.seen],
        change="trace again before you act on them; times of kernels, and how long the device "
        "idles, stand",
        predicted_ns=None,
    )


def above_peak(c: Context) -> Finding | None:
    """Kernels faster than the peaks allow: data was in cache, or a peak is wrong."""
    frame = c.pruned.frame
    # Where streams overlap, `busy` is the part of a kernel that no earlier one covers.
    took = "duration" if c.pruned.on_device else "busy"
    fast = frame.filter((frame["ideal"] > _FLAGGED * frame[took]) & (frame["busy"] > 0))
    total = int(frame["busy"].sum())
    share = int(fast["busy"].sum()) / total if total else 0.0
    if share < 0.02:
        return None
    shown = fast.sort("busy", descending=True).head(3)
    lines = [
        f"{shortened(r['name'])}: {ms(r[took])}, its peaks need {ms(r['ideal'])}"
        for r in shown.iter_rows(named=True)
    ]
    return Finding(
        id="above-peak",
        severity="info",
        text=f"{percent(share)} of busy time is in kernels faster than the peaks allow: their data "
        "was in a cache, or a peak is too low",
        evidence=lines,
        change="time with a cold cache, or measure the peaks (prunescope calibrate)",
        predicted_ns=None,
    )


def spill(c: Context) -> Finding | None:
    """Device events of the step before lie in the trace."""
    found = c.phase.spill
    device = found["ns"] + c.phase.busy_ns * c.phase.steps
    if not found["events"] or found["ns"] < 0.01 * device:
        return None
    return Finding(
        id="spill",
        severity="info",
        text=f"{found['events']:.0f} device events ({percent(found['ns'] / device, 1)} of device "
        "time) belong to the step before and are left out",
        evidence=[f"{ms(found['ns'])} were launched before the trace began"],
        change="synchronise before the profiler starts",
        predicted_ns=None,
    )


def above_bound(c: Context) -> Finding | None:
    """A speedup above the roofline bound is shown, with the rows of the ledger that gave it."""
    ladder = c.phase.ladder
    if ladder is None or ladder.share_of_bound is None or ladder.share_of_bound <= 1.05:
        return None
    if ladder.holds_bound:
        return None
    gains = [one for one in _beyond(c) if one[0].moves_ns < 0]
    total = sum(row.moves_ns for row, _, _ in gains)
    blamed = [
        (why, f"{name} {ms(row.moves_ns)}")
        for row, why, name in gains
        if row.moves_ns <= _BLAMED * total and is_beyond_noise(row)
    ]
    why = (
        "; ".join(why for why, _ in blamed)
        or "no row of the ledger beyond twice its noise explains it"
    )
    if timing_not_valid(c) is not None:
        why, blamed = "the times of this run are not valid, and may be all of it", []
    bound = f"roofline bound {ladder.roofline:.2f}×" if ladder.roofline else ""
    return Finding(
        id="above-bound",
        severity="info",
        text=f"realised {ladder.realised:.2f}× is {percent(ladder.share_of_bound)} of the roofline "
        f"bound: {why}",
        evidence=[bound, *(line for _, line in blamed)],
        change=None,
        predicted_ns=None,
    )


def _beyond(c: Context) -> list[tuple[Row, str, str]]:
    """What the bound leaves as it was in the dense run: rows of the ledger, what each means where
    it is negative, and its name; the largest gain first."""
    kernels, shape, idle = (c.row(n) for n in ("kernel_efficiency", "shape", "launch_idle"))
    found = [
        (
            without_communication(kernels),
            "the pruned kernels are more efficient than the dense ones, or their data moved into a "
            "cache",
            "kernel efficiency without communication",
        ),
        (communication(kernels), "communication took less time, and waits less", "communication"),
        (shape, "tiles and waves fit the pruned shapes better", "shape"),
        (idle, "the device idles less than in the dense run", "launch and idle"),
    ]
    known = [(row, why, name) for row, why, name in found if row is not None]
    return sorted(known, key=lambda one: one[0].moves_ns)
