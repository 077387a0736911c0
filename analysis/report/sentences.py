"""The sentences above the tables of a phase, shared by every format: in, a Phase of the Report;
out, plain lines with units, unescaped. Each percentage names its base, each statistic its name.
"""

from __future__ import annotations

from statistics import median

import msgspec

from prunescope.analysis.report import numbers
from prunescope.analysis.report.gemm_table import without_sizes
from prunescope.analysis.schema.pair_comparison import DTYPE, MODULES
from prunescope.analysis.schema.report import (
    CAPTURED,
    CUT_OFF,
    EARLIER_WORK,
    NO_SPEEDUP,
    NOT_COMPARABLE,
    OTHER_TIME,
    UNCERTAIN_CONFIG,
    WHOLE_TRACE,
    FamilyVerdict,
    Finding,
    Ladder,
    Phase,
    Report,
)
from prunescope.analysis.schema.sides import ColdSteps, Totals, Unprofiled
from prunescope.taxonomy.run import NARROW

FAMILIES = {
    "dense": "nothing changed between the two runs",
    "outside": "what changed is no pruning of M, N or K",
    "unknown": "the shapes do not identify a family",
}
HOLDS_BOUND = "the interval includes the bound"
BOUND_WITHOUT_INTERVAL = "the bound has no interval"
PAST_BOUND = "≥ 100 % of the bound: faster than the roofline model allows"
NO_FINDING = "no finding applies; the tables show where the time goes"
_PROMISED = 1.005  # a nominal speedup from which on one was promised
_NOTABLE = 0.98  # realised ÷ predicted from which on there is no miss to explain
_FEW_STEPS = 8  # whose times a line shows one by one
_PLACED = "which alone moves a model by 1 to 3 %"


def setup(phase: Phase) -> str:
    """Steps, samples, sparsity: what the numbers of the phase are made of."""
    is_whole = phase.steps == 1 and phase.noticed(WHOLE_TRACE)
    steps = f"{phase.steps} profiled step{'s' * (phase.steps != 1)}"
    facts = ["the whole trace as one step" if is_whole else steps + _step_times(phase)]
    facts += _left_out(phase.cold_steps)
    facts += _left_out(phase.baseline.cold_steps, "dense ") if phase.baseline else []
    if timed := phase.unprofiled_ns:
        text = timed.samples_in_words
        text += f" in {len(timed.placements)} placements" if timed.placements else ""
        if cost := timed.placement_cost_ns:
            text += f", each after {numbers.time(cost)} of copying weights and warm-up"
        facts.append(text)
    names = {"nominal": "nominal s", "parameters": "parameters", "flop": "FLOPs", "bytes": "bytes"}
    known = {names.get(k, k): share for k, share in phase.sparsity.items() if share is not None}
    if known and phase.shows_pruning:
        removed = (f"{name} {numbers.percent(share)}" for name, share in known.items())
        facts.append(f"removed: {', '.join(removed)}")
    elif known:  # sides that do not compare have less or more, which nobody removed
        ratios = (f"{name} {numbers.ratio(1 - share)}" for name, share in known.items())
        facts.append(f"of the dense side: {', '.join(ratios)}")
    return " · ".join(facts)


def _left_out(cold: ColdSteps | None, side: str = "") -> list[str]:
    """The steps that no mean contains, because they hold first calls or compilation."""
    if cold is None:
        return []
    count = len(cold.step_ns)
    which = f"{count} {side}cold step{'s' * (count != 1)}"
    return [
        f"{which} left out{_times(cold.step_ns)}, of which "
        f"{numbers.time(sum(cold.first_call_ns))} in first calls or compilation"
    ]


def _step_times(phase: Phase) -> str:
    """The times of the steps where no samples describe one better: all of a few, else the range."""
    if len(phase.step_ns) < 2 or phase.unprofiled_ns is not None:
        return ""
    return _times(phase.step_ns)


def _times(times: list[int]) -> str:
    unit = numbers.scale(times)
    if len(times) > _FEW_STEPS:
        low, middle, high = (unit.text(f(times)) for f in (min, median, max))
        return f" of {low} to {high} {unit.unit}, the median {middle}"
    *most, last = map(unit.text, times)
    return f" of {', '.join(most)} and {last} {unit.unit}" if most else f" of {last} {unit.unit}"


def headline(phase: Phase) -> str:
    """The outcome of the phase, and whether shapes come from a config; where no step was timed, or
    the timing is not valid, that comes first."""
    sides = [phase.shapes, phase.baseline.shapes if phase.baseline else {}]
    modelled = any(shares.get("model") for shares in sides)
    text = "timing not valid: " if phase.invalid_times and not captured(phase) else ""
    if phase.finding(UNCERTAIN_CONFIG):
        text += "the config may be that of another model (tiles do not fit it): "
    text += _outcome(phase) + (", shapes from the model's config" if modelled else "")
    return (
        f"{without_earlier_work(phase)}; as recorded {text}" if holds_earlier_work(phase) else text
    )


def holds_earlier_work(phase: Phase) -> bool:
    """Whether much of a speedup's two times is time in which work ran that was launched before the
    profiler. Samples without it hold none."""
    is_ratio = phase.ladder is not None and phase.is_speedup and phase.sampled is None
    return is_ratio and phase.finding(EARLIER_WORK) is not None


def without_earlier_work(phase: Phase) -> str:
    """How much of each step is earlier work, and what the speedup is without it."""
    dense = phase.baseline
    if dense is None:
        return ""
    sides: dict[str, Totals | Phase] = {"dense": dense, "pruned": phase}
    shares = [
        f"{numbers.percent(numbers.share_of(one.earlier_work_ns, one.wall_ns), decimals=0)} of the "
        f"{name} step"
        for name, one in sides.items()
        if one.earlier_work_ns
    ]
    before, after = (one.wall_ns - one.earlier_work_ns for one in sides.values())
    ratio = numbers.ratio(numbers.share_of(before, after))
    return (
        f"{' and '.join(shares)} is earlier work, most likely: without it "
        f"{numbers.time(before)} → {numbers.time(after)}, {ratio}"
    )


def captured(phase: Phase) -> str:
    """A sentence if no step was timed because a graph captured most of it; else empty."""
    found = phase.finding(CAPTURED)
    return f"no step was timed ({'; '.join(found.evidence)})" if found is not None else ""


def _outcome(phase: Phase) -> str:
    """Realised and promised speedup; or that the ratio is noise where nothing was pruned; or why
    the sides are not comparable; without a baseline, the step and how busy it is."""
    if why := captured(phase):
        ratio = (
            f", and {numbers.ratio(phase.ladder.realised)} is no speedup" if phase.ladder else ""
        )
        return f"{why}: the rest took {numbers.time(phase.wall_ns)}{ratio}"
    if damage := phase.finding(CUT_OFF):
        left = f"the rest takes {numbers.time(phase.wall_ns)} a step"
        ratio = f"{numbers.ratio(phase.ladder.realised)} is no speedup" if phase.ladder else left
        return f"{damage.text}; {ratio}"
    if phase.ladder is None:
        share = numbers.share_of(phase.in_step(phase.busy_ns), phase.step_time_ns)
        text = f"{_step(phase)}{_and_median(phase)}, busy "
        text += f"{numbers.percent(share)} of the wall"
        text += _communication(phase)
        return text + ", much of which is earlier work, most likely" * bool(
            phase.finding(EARLIER_WORK)
        )
    ladder = phase.ladder
    ratio = f"{numbers.ratio(ladder.realised)}{_interval(ladder)}"
    if not phase.is_speedup:
        return _no_speedup(phase, ladder, ratio)
    if phase.invalid_times:
        timed = phase.unprofiled_ns is not None
        why = (
            "the samples vary too much or were disturbed" if timed else "the steps were interrupted"
        )
        return f"{ratio} is no evidence: {why}"
    if without_sizes(phase):
        why = (
            "no shapes, so what was pruned is unknown (capture again with shapes, or for a GPU's "
            "trace give --model CONFIG)"
        )
        return f"{why}: {ratio} is the ratio of the two traces"
    if phase.nothing_moved:
        return _unmoved(phase, ladder)
    if phase.finding(NO_SPEEDUP):
        text = f"{ratio} is indistinguishable from no speedup: the interval includes 1×"
        return (
            text if not _has_nominal(phase, ladder) else f"{text}; {_was_promised(phase, ladder)}"
        )
    return _realised(phase, ladder)


def _step(phase: Phase) -> str:
    """The time of a step alone, without the profiler where that is known."""
    if phase.time_scale is None:
        return f"{numbers.time(phase.wall_ns)} a step"
    profiled = numbers.time(phase.wall_ns)
    return f"{numbers.time(phase.step_time_ns)} a step without the profiler ({profiled} with it)"


def _and_median(phase: Phase) -> str:
    """A sentence if the time of a step is a mean over unlike steps, with their median."""
    if not phase.finding("step-outlier"):
        return ""
    return f" (mean over unlike steps; the median is {numbers.time(median(phase.step_ns))})"


def _communication(phase: Phase) -> str:
    """How much of the busy time only communication fills, and how much of it is overlapped."""
    comm = phase.communication
    if comm is None:
        return ""
    parts = phase.busy_ns - comm.exposed_ns, comm.exposed_ns
    shares = (numbers.share_of(phase.in_step(ns), phase.step_time_ns) for ns in parts)
    of_work, exposed = map(numbers.percent, shares)
    text = f" ({of_work} work, {exposed} exposed communication"
    if comm.overlapped_ns:
        share = numbers.share_of(comm.overlapped_ns, comm.exposed_ns + comm.overlapped_ns)
        text += f"; {numbers.percent(share)} of the communication is overlapped"
    return f"{text})"


def _communication_of_pair(phase: Phase) -> str:
    """Exposed and overlapped communication of the pruned side, where the headline is a speedup."""
    comm = phase.communication
    if comm is None or phase.ladder is None:
        return ""
    exposed, overlapped = map(phase.in_step, (comm.exposed_ns, comm.overlapped_ns))
    share = numbers.percent(numbers.share_of(exposed, phase.step_time_ns))
    return (
        f"communication of the pruned step: {numbers.time(exposed)} exposed ({share} of "
        f"the wall), {numbers.time(overlapped)} overlapped"
    )


def _realised(phase: Phase, ladder: Ladder) -> str:
    """The speedup next to the promised one, and the share of its bound."""
    text = f"{numbers.ratio(ladder.realised)} realised{_interval(ladder)}"
    if _has_nominal(phase, ladder):
        text += f" of {numbers.ratio(ladder.nominal)} "
        text += "promised" if has_promise(phase) else "that its FLOPs allow"
    if ladder.share_of_bound is not None:
        text += f", {numbers.percent(ladder.share_of_bound)} of the roofline bound"
        if ladder.realised_ci95 and ladder.share_of_bound_ci95:
            text += f" {numbers.interval(ladder.share_of_bound_ci95, numbers.percent)}"
        if ladder.share_of_bound > 1.005:
            text += f" ({_beyond(ladder)})"
    return text


def _beyond(ladder: Ladder) -> str:
    """A note on a speedup above its bound; empty where the interval includes the bound, or where
    the bound, which rests on few steps, has no interval although the speedup has one."""
    if ladder.holds_bound:
        return HOLDS_BOUND
    is_known = ladder.realised_ci95 is None or ladder.share_of_bound_ci95 is not None
    return PAST_BOUND if is_known else BOUND_WITHOUT_INTERVAL


def _no_speedup(phase: Phase, ladder: Ladder, ratio: str) -> str:
    """A sentence: the ratio of two runs is no speedup, because settings differed, and which. GEMMs
    in two number formats come first: these change the time of every FLOP and byte, whatever was
    pruned."""
    text, compared = f"{ratio} is no speedup", phase.comparison
    kinds = {one.kind for one in compared.differences} if compared else set()
    formats = compared.formats if compared and DTYPE in kinds else None
    if formats is not None:
        text = f"not comparable as a pruning: GEMMs in {formats[1]} against {formats[0]}; {text}"
    if formats is None or kinds != {DTYPE}:
        lines = [line for f in phase.findings if f.id == NOT_COMPARABLE for line in f.evidence]
        return f"{text}: not comparable ({'; '.join(lines[:3])})"
    return f"{text}; {_was_promised(phase, ladder)}" if has_promise(phase) else text


def _unmoved(phase: Phase, ladder: Ladder) -> str:
    """The ratio of two captures of one model, or of what seems to be one: noise where it is small
    enough, else what the ledger shows of its cause. No speedup of a pruning either way."""
    known = phase.family is not None and phase.family.id == "dense"
    text = "nothing was pruned" if known else "the shapes show no pruning"
    text += f": {numbers.ratio(ladder.realised)}"
    text += _interval(ladder) or " (no interval: fewer than five steps, or one sample)"
    if ladder.is_noise:
        text += " is the noise between two captures, "
        text += "no speedup" if known else "or what a trace does not show"
    else:
        found = phase.finding(OTHER_TIME)
        rows = msgspec.UNSET if found is None else found.rows
        if rows == []:
            text += " is no speedup of a pruning, and no row of the ledger is beyond its noise"
        else:
            text += " is more than noise and no speedup of a pruning"
            text += f": {', '.join(rows)}" if rows else ""
    if _has_nominal(phase, ladder) and (ladder.nominal or 1.0) > _PROMISED:
        text += f"; {_was_promised(phase, ladder)}"
    return text


def has_promise(phase: Phase) -> bool:
    """Whether a nominal sparsity is known; without one the first bound is the FLOP ratio."""
    return phase.sparsity.get("nominal") is not None


def _has_nominal(phase: Phase, ladder: Ladder) -> bool:
    """Whether the first bound says something: a promise does, and FLOPs at one rate."""
    two_rates = phase.comparison is not None and phase.comparison.formats is not None
    return ladder.nominal is not None and (has_promise(phase) or not two_rates)


def _was_promised(phase: Phase, ladder: Ladder) -> str:
    nominal = numbers.ratio(ladder.nominal)
    return f"{nominal} was promised" if has_promise(phase) else f"its FLOPs allow {nominal}"


def _interval(ladder: Ladder) -> str:
    return f" {numbers.ratios(ladder.realised_ci95)}" if ladder.realised_ci95 else ""


def family(verdict: FamilyVerdict | None) -> str:
    """The pruning family read from the shapes."""
    if verdict is None:
        return ""
    text = f"family {verdict.id} (confidence {numbers.percent(verdict.confidence, decimals=0)})"
    if verdict.id in FAMILIES:
        text += f", {FAMILIES[verdict.id]}"
    if len(verdict.parts) > 1:
        shares = (f"{p['id']} {numbers.percent(p['share'], decimals=0)}" for p in verdict.parts)
        text += f", of the time touched {', '.join(shares)}"
    if verdict.evidence:
        text += f": {'; '.join(verdict.evidence[: max(2, len(verdict.parts))])}"
    if verdict.alternatives:
        text += f" [or {', '.join(verdict.alternatives)}]"
    return text


def coverage(phase: Phase) -> str:
    """Shares of busy time that have a kind, a work model and a role; the largest unknown kernel
    where unknown ones have a visible share."""
    names = (("kind", "a kind"), ("work", "a work model"), ("role", "a role"))
    known = ", ".join(
        f"{numbers.percent(phase.coverage.get(key))} has {label}" for key, label in names
    )
    profiled = " in the profiled step" * phase.is_slowed
    text = f"recognised time, of {numbers.time(phase.busy_ns)} busy{profiled}: {known}"
    unnamed = 1 - phase.coverage.get("kind", 0.0)
    if phase.unknown_kernels and numbers.percent(unnamed) != numbers.percent(0.0):
        first = phase.unknown_kernels[0]
        text += f"; largest without a kind: {first.name} ({numbers.time(first.busy_ns)})"
    return text


def finding(item: Finding) -> str:
    """The diagnosis with the proposed change and its predicted gain."""
    text = item.text
    if item.change:
        text += f" → {item.change}"
    if item.predicted_ns is not None:
        text += f" (at most {numbers.time(item.predicted_ns)} a step)"
    return text


def predicted(phase: Phase) -> str:
    """The predicted ladder on the run's peaks, and the term by which the realised speedup misses it
    most."""
    prediction = phase.predicted
    if prediction is None:
        return ""
    names = {"flop": "FLOPs", "coverage": "coverage", "roofline": "roofline"}
    bounds = ", ".join(
        f"{label} {numbers.ratio(prediction['ladder'].get(key))}" for key, label in names.items()
    )
    text = f"predicted for {prediction['family']} on these peaks: {bounds}"
    miss = prediction.get("miss")
    if miss is None or phase.invalid_times or not phase.is_speedup:
        return text
    text += f"; realised is {numbers.percent(miss['ratio'], decimals=0)} of that"
    worst = next((term for term in miss["terms"] if term["name"] == miss["largest"]), None)
    if miss["ratio"] < _NOTABLE and worst is not None:
        label = {"launch_idle": "launch and idle"}.get(worst["name"], worst["name"])
        text += f", mostly by {label.replace('_', ' ')} ×{worst['ratio']:.2f} ({worst['says']})"
    return text


def warnings(report: Report) -> list[str]:
    """The warnings of the report, which name its missing parts."""
    unnamed = report.partial and not report.warnings
    return ["this report is of a part of what ran"] if unnamed else report.warnings


def opening(phase: Phase) -> list[str]:
    """The lines below the headline."""
    every = (
        predicted(phase),
        statistic(phase),
        family(phase.family),
        _communication_of_pair(phase),
        setup(phase),
        coverage(phase),
    )
    return [line for line in every if line]


def _dense_samples(phase: Phase) -> Unprofiled | None:
    return phase.baseline.unprofiled_ns if phase.baseline else None


def _not_randomised(phase: Phase) -> list[str]:
    """The sides with unprofiled samples whose placement in memory was not randomised."""
    sides = {"dense": _dense_samples(phase), "pruned": phase.unprofiled_ns}
    return [name for name, timed in sides.items() if timed and not timed.placements]


def statistic(phase: Phase) -> str:
    """The statistic of which the realised speedup is a ratio, and which side's host was slower for
    what it recorded; for a run alone, the statistic of its time."""
    text = _statistic(phase)
    ignored = phase.comparison.one_sided if phase.comparison else ()
    if phase.sampled is not None or all(one.kind != MODULES for one in ignored):
        return text
    (missing,) = (one.missing for one in ignored if one.kind == MODULES)
    slower = {"dense": "pruned", "pruned": "dense"}[missing]
    return f"{text}; the {slower} side alone recorded modules, which slows its host"


def _statistic(phase: Phase) -> str:
    timed = phase.unprofiled_ns
    if phase.ladder is None:
        return _alone(timed)
    if phase.sampled is None:
        text = "dense wall ÷ pruned wall, profiled (no unprofiled samples entered the ratio)"
        over = f"; 95 % bootstrap interval over {phase.steps} profiled steps"
        return text + (over if phase.ladder.realised_ci95 and not timed else "")
    has_interval = phase.ladder.realised_ci95 is not None
    (dense, timed), missing = phase.sampled, _not_randomised(phase)
    if missing:
        text = f"ratio of the medians of {timed.samples_in_words}"
        if dense.placements or timed.placements:
            text = f"ratio of {dense.in_words} (dense) to {timed.in_words} (pruned)"
        text += "; 95 % bootstrap interval" if has_interval else ""
        where = f" of {missing[0]}" if dense.placements or timed.placements else ""
        return f"{text}; placement in memory{where} was not randomised, {_PLACED}"
    if len(dense.placements or ()) == len(timed.placements or ()):
        text = f"ratio of geometric means over {len(timed.placements or ())} placements, of the "
        text += f"medians of {timed.samples_in_words} in all"
    else:
        text = f"ratio of {dense.in_words} (dense) to {timed.in_words} (pruned)"
    return (
        text + _why_placements(timed) + ("; 95 % interval over placements" if has_interval else "")
    )


def _why_placements(timed: Unprofiled) -> str:
    """Why the number of placements differs from the requested one; empty where it does not."""
    requested = timed.placements_requested
    if not requested:
        return ""
    text = f" ({requested} placements were requested; "
    if requested > len(timed.placements or ()):
        return f"{text}--repeats and --max-placements allow no more)"
    width = numbers.percent(NARROW, decimals=0)
    return f"{text}more were added while the interval was wider than {width})"


def _alone(timed: Unprofiled | None) -> str:
    """The time of a run without a baseline, where it is of one placement only."""
    if timed is None or timed.placements:
        return ""
    text = f"{numbers.time(timed.median)} a step without the profiler, {timed.in_words}"
    return f"{text}; placement in memory was not randomised, {_PLACED}"
