"""The sentences around the tables of a phase, shared by every format.

In: a Phase of the Report. Out: plain lines with units, unescaped. Each percentage names its base,
each statistic its name.
"""

from __future__ import annotations

from statistics import median

from prunescope.analysis.schema.pair_comparison import MODULES
from prunescope.analysis.schema.report import WHOLE_TRACE, FamilyVerdict, Finding, Phase, Report
from prunescope.analysis.schema.sides import ColdSteps, Unprofiled
from prunescope.analysis.summary.headline import FAMILIES
from prunescope.taxonomy import numbers
from prunescope.taxonomy.repairs import BY_ID, repairs_text
from prunescope.taxonomy.runs.run import NARROW
from prunescope.taxonomy.words import plural, when

NO_FINDING = "no finding applies; the tables show where the time goes"
_NOTABLE = 0.98  # realised ÷ predicted from which on there is no miss to explain
_FEW_STEPS = 8  # whose times a line shows one by one
_PLACED = "which alone moves a model by 1 to 3 %"


def setup(phase: Phase) -> str:
    """Return what the numbers of a phase are made of: steps, samples and removed shares."""
    is_whole = phase.steps == 1 and phase.noticed(WHOLE_TRACE)
    steps = f"{phase.steps} profiled step{plural(phase.steps)}"
    facts = ["the whole trace as one step" if is_whole else steps + _step_times(phase)]
    facts += _left_out(phase.cold_steps)
    facts += _left_out(phase.baseline.cold_steps, "dense ") if phase.baseline else []
    facts += _as_recorded(phase)
    if timed := phase.unprofiled_ns:
        text = timed.samples_in_words
        text += f" in {len(timed.placements)} placements of the weights" if timed.placements else ""
        if cost := timed.placement_cost_ns:
            text += f", each after {numbers.time(cost)} of copying weights and warm-up"
        facts.append(text)
    names = {"nominal": "nominal s", "parameters": "parameters", "flop": "FLOPs", "bytes": "bytes"}
    shares = {names.get(k, k): share for k, share in phase.sparsity.items() if share is not None}
    if shares and phase.shows_pruning:
        removed = (f"{name} {numbers.percent(share)}" for name, share in shares.items())
        facts.append(f"removed: {', '.join(removed)}")
    elif shares:  # sides that do not compare have less or more, which nobody removed
        ratios = (f"{name} {numbers.ratio(1 - share)}" for name, share in shares.items())
        facts.append(f"of the dense side: {', '.join(ratios)}")
    return " · ".join(facts)


def _left_out(cold: ColdSteps | None, side: str = "") -> list[str]:
    """Return a sentence on the steps of a side that no mean contains; none where there are none."""
    if cold is None:
        return []
    count = len(cold.step_ns)
    return [
        f"{count} {side}cold step{plural(count)} left out{_times(cold.step_ns)}, of which "
        f"{numbers.time(sum(cold.first_call_ns))} in first calls or compilation"
    ]


def _as_recorded(phase: Phase) -> list[str]:
    """Return the steps with the earlier work that is left out; empty where there is none."""
    dense = phase.baseline
    if not phase.earlier_work_ns and (dense is None or not dense.earlier_work_ns):
        return []
    recorded = [] if dense is None else [dense.wall_ns + dense.earlier_work_ns]
    recorded.append(phase.wall_ns + phase.earlier_work_ns)
    text = f"as recorded, with earlier work, {' → '.join(map(numbers.time, recorded))}"
    return [text + when(dense is not None, f", {numbers.ratio(recorded[0] / recorded[-1])}")]


def _step_times(phase: Phase) -> str:
    """Return the times of the steps, where no samples describe a step better."""
    if len(phase.step_ns) < 2 or phase.unprofiled_ns is not None:
        return ""
    return _times(phase.step_ns)


def _times(times: list[int]) -> str:
    """Return each of a few times, else their range and median."""
    unit = numbers.scale(times)
    if len(times) > _FEW_STEPS:
        low, middle, high = (unit.text(f(times)) for f in (min, median, max))
        return f" of {low} to {high} {unit.unit}, the median {middle}"
    *most, last = map(unit.text, times)
    return f" of {', '.join(most)} and {last} {unit.unit}" if most else f" of {last} {unit.unit}"


def _communication_of_pair(phase: Phase) -> str:
    """Return the communication of the pruned side, where the headline is a speedup."""
    communication = phase.communication
    if communication is None or phase.ladder is None:
        return ""
    exposed = phase.scale_to_step(communication.exposed_ns)
    share = numbers.percent(numbers.share_of(exposed, phase.step_time_ns))
    return (
        f"communication of the pruned step: {numbers.time(exposed)} exposed ({share} of "
        f"the wall), {numbers.time(phase.scale_to_step(communication.overlapped_ns))} overlapped"
    )


def family(verdict: FamilyVerdict | None) -> str:
    """Return the pruning family that the shapes show; empty without a verdict."""
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
    return text + when(bool(verdict.alternatives), f" [or {', '.join(verdict.alternatives)}]")


def coverage(phase: Phase) -> str:
    """Return the shares of busy time that have a kind, a work model and a role.

    The largest unknown kernel is named where unknown ones have a visible share.
    """
    names = (("kind", "a kind"), ("work", "a work model"), ("role", "a role"))
    shares = ", ".join(
        f"{numbers.percent(phase.coverage.get(key))} has {label}" for key, label in names
    )
    profiled = when(phase.is_slowed, " in the profiled step")
    text = f"recognised time, of {numbers.time(phase.busy_ns)} busy{profiled}: {shares}"
    unnamed = 1 - phase.coverage.get("kind", 0.0)
    if phase.unknown_kernels and numbers.percent(unnamed) != numbers.percent(0.0):
        first = phase.unknown_kernels[0]
        text += f"; largest without a kind: {first.name} ({numbers.time(first.busy_ns)})"
    return text


def finding(item: Finding) -> str:
    """Return the diagnosis of a finding, with its change and the predicted gain."""
    text = item.text
    if item.change:
        text += f" → {item.all_changes}"
    if item.predicted_ns is not None:
        text += f" (at most {numbers.time(item.predicted_ns)} a step)"
    return text


def code_to_try(phase: Phase) -> tuple[str, str] | None:
    """Return a title and the code of the repairs of all findings; None where none has any.

    It is what `fix` applies and measures, and an analysis proves nothing of it.
    """
    repaired = [
        item
        for item in phase.findings
        if item.repairs and item.severity != "info"  # which says nothing that one must act on
    ]
    wanted = {id for item in repaired for id in item.repairs or ()}
    if not wanted:
        return None
    names = ", ".join(item.id for item in repaired)
    title = f"Code to try for {names} (not proven here: `prunescope fix` measures it)"
    # In the order of the table: masks are baked before adapters are merged into the weights.
    return title, repairs_text([id for id in BY_ID if id in wanted], skips=True)


def predicted(phase: Phase) -> str:
    """Return the ladder that theory predicts on the peaks of the run; empty without a prediction.

    The term by which the realised speedup misses it most is named.
    """
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
    """Return the warnings of the report, which name its missing parts."""
    is_unnamed = report.partial and not report.warnings
    return ["this report is of a part of what ran"] if is_unnamed else report.warnings


def opening(phase: Phase) -> list[str]:
    """Return the lines below the paragraph."""
    lines = (
        predicted(phase),
        statistic(phase),
        family(phase.family),
        _communication_of_pair(phase),
        setup(phase),
        coverage(phase),
    )
    return [line for line in lines if line]


def statistic(phase: Phase) -> str:
    """Return the statistic of which the realised speedup is a ratio; empty where none says more.

    Without a baseline it is the statistic of the time of a step. Where one side alone recorded
    modules, the text says that this slowed its host.
    """
    text = _statistic(phase) + _until(phase.unprofiled_ns)
    ignored = phase.comparison.one_sided if phase.comparison else ()
    if phase.sampled is not None or all(lack.kind != MODULES for lack in ignored):
        return text
    (missing,) = (lack.missing for lack in ignored if lack.kind == MODULES)
    slower = {"dense": "pruned", "pruned": "dense"}[missing]
    return f"{text}; the {slower} side alone recorded modules, which slows its host"


def _statistic(phase: Phase) -> str:
    timed = phase.unprofiled_ns
    if phase.ladder is None:
        return _statistic_alone(timed)
    has_interval = phase.ladder.realised_ci95 is not None
    if phase.sampled is None:
        text = "dense wall ÷ pruned wall, profiled (no unprofiled samples entered the ratio)"
        over = f"; 95 % bootstrap interval over {phase.steps} profiled steps"
        return text + when(has_interval and not timed, over)
    dense, timed = phase.sampled
    ratio_of_both = f"ratio of {dense.in_words} (dense) to {timed.in_words} (pruned)"
    if not_randomised := _not_randomised(phase):
        is_one_sided = bool(dense.placements or timed.placements)
        text = ratio_of_both
        if not is_one_sided:
            text = f"ratio of the medians of {timed.samples_in_words}"
        text += when(has_interval, "; 95 % bootstrap interval")
        where = when(is_one_sided, f" of {not_randomised[0]}")
        return f"{text}; placement in memory{where} was not randomised, {_PLACED}"
    text = ratio_of_both
    if len(dense.placements or ()) == len(timed.placements or ()):
        text = f"ratio of geometric means over {len(timed.placements or ())} placements, of the "
        text += f"medians of {timed.samples_in_words} in all"
    return text + _why_placements(timed) + when(has_interval, "; 95 % interval over placements")


def _not_randomised(phase: Phase) -> list[str]:
    """Return the sides with unprofiled samples whose placement in memory was not randomised."""
    dense = phase.baseline.unprofiled_ns if phase.baseline else None
    sides = {"dense": dense, "pruned": phase.unprofiled_ns}
    return [name for name, timed in sides.items() if timed and not timed.placements]


def _why_placements(timed: Unprofiled) -> str:
    """Return why the number of placements is not the requested one; empty where it is."""
    requested = timed.placements_requested
    if not requested:
        return ""
    text = f" ({requested} placements were requested; "
    if requested > len(timed.placements or ()):
        return f"{text}--repeats and --max-placements allow no more)"
    width = numbers.percent(NARROW, decimals=0)
    return f"{text}more were added while the interval was wider than {width})"


def _until(timed: Unprofiled | None) -> str:
    """Return how narrow an interval was requested by `--until`, and reached; empty without it."""
    if timed is None or not (until := timed.until):
        return ""
    of = {"speedup": "the speedup", "time": "the time of a step"}[until.of]
    reached = "no interval" if until.reached is None else f"±{_share(until.reached)}"
    text = f"; ±{_share(until.asked)} of {of} was requested, and {reached} reached"
    looks = f" in {until.looks} look{plural(until.looks)}, for which the interval is widened"
    return text + when(until.looks > 0, looks)


def _share(value: float) -> str:
    """Return a half-width with the digits that tell it from another one: `1.7 %`, `0.25 %`."""
    return f"{100 * value:.2g} %"


def _statistic_alone(timed: Unprofiled | None) -> str:
    """Return the time of a run without a baseline: of one placement, or with `--until`."""
    if timed is None or (timed.placements and not timed.until):
        return ""
    text = f"{numbers.time(timed.median)} a step without the profiler, {timed.in_words}"
    if timed.placements:
        return text
    return f"{text}; placement in memory was not randomised, {_PLACED}"
