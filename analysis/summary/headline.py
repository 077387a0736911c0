"""The headline of a phase: its outcome in one sentence, with what keeps it from being evidence.

In: a Phase of the Report. Out: a sentence with units, unescaped. Each percentage names its base.
"""

from __future__ import annotations

from statistics import median

import msgspec

from prunescope.analysis.schema.pair_comparison import DTYPE
from prunescope.analysis.schema.report import (
    CAPTURED,
    CUT_OFF,
    NO_SPEEDUP,
    NOT_COMPARABLE,
    OTHER_TIME,
    UNCERTAIN_CONFIG,
    Ladder,
    Phase,
)
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import when

FAMILIES = {
    "dense": "nothing changed between the two runs",
    "outside": "what changed is no pruning of M, N or K",
    "unknown": "the shapes do not identify a family",
}
_PROMISED = 1.005  # a nominal speedup from which on one was promised
_PAST_BOUND = 1.005  # a share of the roofline bound from which on it needs a word


def headline(phase: Phase) -> str:
    """Return the outcome of a phase, and whether shapes come from a config.

    That the timing is not valid, or that the config is uncertain, comes first.
    """
    sides = [phase.shapes, phase.baseline.shapes if phase.baseline else {}]
    is_invalid = bool(phase.invalid_times) and not _no_timed_step(phase)
    text = when(is_invalid, "timing not valid: ")
    if phase.finding(UNCERTAIN_CONFIG):
        text += "the config may be that of another model (tiles do not fit it): "
    text += _outcome(phase)
    return text + when(
        any(shares.get("model") for shares in sides), ", shapes from the model's config"
    )


def _no_timed_step(phase: Phase) -> str:
    """Say that no step was timed because a graph captured most of it; else return an empty text."""
    captured = phase.finding(CAPTURED)
    return "" if captured is None else f"no step was timed ({'; '.join(captured.evidence)})"


def _outcome(phase: Phase) -> str:
    """Return the realised and promised speedup, or what stands in its place.

    That is why the sides are not comparable, that the ratio is noise where nothing was pruned, or
    without a baseline the time of a step and how busy it is.
    """
    ladder = phase.ladder
    no_speedup = f"{numbers.ratio(ladder.realised)} is no speedup" if ladder else ""
    if why := _no_timed_step(phase):
        text = f"{why}: the rest took {numbers.time(phase.wall_ns)}"
        return text + when(ladder is not None, f", and {no_speedup}")
    if damage := phase.finding(CUT_OFF):
        return f"{damage.text}; " + (
            no_speedup or f"the rest takes {numbers.time(phase.wall_ns)} a step"
        )
    if ladder is None:
        return _step_alone(phase)
    ratio = f"{numbers.ratio(ladder.realised)}{_interval(ladder)}"
    if not phase.is_speedup:
        return _no_speedup(phase, ladder, ratio)
    if phase.invalid_times:
        samples = "the samples vary too much or were disturbed"
        why = samples if phase.unprofiled_ns is not None else "the steps were interrupted"
        return f"{ratio} is no evidence: {why}"
    if phase.lacks_sizes:
        why = (
            "no shapes, so what was pruned is unknown (capture again with shapes, or for a GPU's "
            "trace give --model CONFIG)"
        )
        return f"{why}: {ratio} is the ratio of the two traces"
    if phase.nothing_moved:
        return _unmoved(phase, ladder)
    if phase.finding(NO_SPEEDUP):
        text = f"{ratio} is indistinguishable from no speedup: the interval includes 1×"
        return text + when(has_nominal(phase, ladder), f"; {_was_promised(phase, ladder)}")
    return _realised(phase, ladder)


def _step_alone(phase: Phase) -> str:
    """Return the time of a step without a baseline, without the profiler where that is known."""
    text = f"{numbers.time(phase.step_time_ns)} a step"
    if phase.time_scale is not None:
        text += f" without the profiler ({numbers.time(phase.wall_ns)} with it)"
    if phase.finding("step-outlier"):
        middle = numbers.time(median(phase.step_ns))
        text += f" (mean over unlike steps; the median is {middle})"
    share = numbers.share_of(phase.scale_to_step(phase.busy_ns), phase.step_time_ns)
    text += f", busy {numbers.percent(share)} of the wall{_communication(phase)}"
    earlier = phase.earlier_work_ns * phase.steps
    return text + when(
        earlier > 0, f", {numbers.time(earlier)} of most likely earlier work left out"
    )


def _communication(phase: Phase) -> str:
    """Say how much of the busy time only communication fills, and how much of it is overlapped."""
    communication = phase.communication
    if communication is None:
        return ""
    exposed_ns, overlapped_ns = communication.exposed_ns, communication.overlapped_ns
    of_work, exposed = (
        numbers.percent(numbers.share_of(phase.scale_to_step(ns), phase.step_time_ns))
        for ns in (phase.busy_ns - exposed_ns, exposed_ns)
    )
    text = f" ({of_work} work, {exposed} exposed communication"
    if overlapped_ns:
        share = numbers.share_of(overlapped_ns, exposed_ns + overlapped_ns)
        text += f"; {numbers.percent(share)} of the communication is overlapped"
    return f"{text})"


def _realised(phase: Phase, ladder: Ladder) -> str:
    """Return the speedup next to the promised one, and the share of its bound."""
    text = f"{numbers.ratio(ladder.realised)} realised{_interval(ladder)}"
    if has_nominal(phase, ladder):
        promise = "promised" if phase.has_promise else "that its FLOPs allow"
        text += f" of {numbers.ratio(ladder.nominal)} {promise}"
    if ladder.share_of_bound is not None:
        text += f", {numbers.percent(ladder.share_of_bound)} of the roofline bound"
        if ladder.realised_ci95 and ladder.share_of_bound_ci95:
            text += f" {numbers.interval(ladder.share_of_bound_ci95, numbers.percent)}"
        text += when(ladder.share_of_bound > _PAST_BOUND, f" ({_past_bound(ladder)})")
    return text


def _past_bound(ladder: Ladder) -> str:
    """Say why a speedup is above its bound.

    A bound that rests on few steps may have no interval although the speedup has one.
    """
    if ladder.holds_bound:
        return "the interval includes the bound"
    if ladder.realised_ci95 is not None and ladder.share_of_bound_ci95 is None:
        return "the bound has no interval"
    return "≥ 100 % of the bound: faster than the roofline model allows"


def _no_speedup(phase: Phase, ladder: Ladder, ratio: str) -> str:
    """Say that the ratio of two runs is no speedup, because settings differed, and which.

    GEMMs in two number formats come first: these change the time of every FLOP and byte, whatever
    was pruned.
    """
    text, compared = f"{ratio} is no speedup", phase.comparison
    kinds = {difference.kind for difference in compared.differences} if compared else set()
    formats = compared.formats if compared and DTYPE in kinds else None
    if formats is not None:
        text = f"not comparable as a pruning: GEMMs in {formats[1]} against {formats[0]}; {text}"
    if formats is None or kinds != {DTYPE}:
        lines = [line for f in phase.findings if f.id == NOT_COMPARABLE for line in f.evidence]
        return f"{text}: not comparable ({'; '.join(lines[:3])})"
    return text + when(phase.has_promise, f"; {_was_promised(phase, ladder)}")


def _unmoved(phase: Phase, ladder: Ladder) -> str:
    """Say what the ratio of two captures of one model, or of what seems to be one, shows.

    It is noise where it is small enough, else what the ledger shows of its cause; no speedup of a
    pruning either way.
    """
    is_dense = phase.family is not None and phase.family.id == "dense"
    text = "nothing was pruned" if is_dense else "the shapes show no pruning"
    text += f": {numbers.ratio(ladder.realised)}"
    text += _interval(ladder) or " (no interval: fewer than five steps, or one sample)"
    if ladder.is_noise:
        text += " is the noise between two captures, "
        text += "no speedup" if is_dense else "or what a trace does not show"
    else:
        unexplained = phase.finding(OTHER_TIME)
        rows = msgspec.UNSET if unexplained is None else unexplained.rows
        if rows == []:
            text += " is no speedup of a pruning, and no row of the ledger is beyond its noise"
        else:
            text += " is more than noise and no speedup of a pruning"
            text += f": {', '.join(rows)}" if rows else ""
    is_promised = has_nominal(phase, ladder) and (ladder.nominal or 1.0) > _PROMISED
    return text + when(is_promised, f"; {_was_promised(phase, ladder)}")


def has_nominal(phase: Phase, ladder: Ladder) -> bool:
    """Return whether the first bound means something: a promise does, and FLOPs at one rate."""
    return ladder.nominal is not None and (phase.has_promise or not phase.has_two_formats)


def _was_promised(phase: Phase, ladder: Ladder) -> str:
    nominal = numbers.ratio(ladder.nominal)
    return f"{nominal} was promised" if phase.has_promise else f"its FLOPs allow {nominal}"


def _interval(ladder: Ladder) -> str:
    return f" {numbers.ratios(ladder.realised_ci95)}" if ladder.realised_ci95 else ""
