"""Which statistic a speedup or a time is: in, a Phase; out, a plain sentence, unescaped.

Whether placement in memory was drawn is said of both sides: an old baseline has one placement,
whatever the run beside it has.
"""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import Unprofiled
from prunescope.taxonomy.run import NARROW

_PLACED = "which alone moves a model by 1 to 3 %"


def _dense(phase: Phase) -> Unprofiled | None:
    return phase.baseline.unprofiled_ns if phase.baseline else None


def _undrawn(phase: Phase) -> list[str]:
    """The sides, of those that have unprofiled samples, whose placement was not drawn."""
    sides = {"dense": _dense(phase), "pruned": phase.unprofiled_ns}
    return [name for name, timed in sides.items() if timed and not timed.placements]


def statistic(phase: Phase) -> str:
    """What the realised speedup is a ratio of; of a run alone, what is not known of its time."""
    timed = phase.unprofiled_ns
    if phase.ladder is None:
        return _alone(timed)
    if phase.sampled is None:
        text = "dense wall ÷ pruned wall, profiled (no unprofiled samples entered the ratio)"
        over = f"; 95 % bootstrap interval over {phase.steps} profiled steps"
        return text + (over if phase.ladder.realised_ci95 and not timed else "")
    has_interval = phase.ladder.realised_ci95 is not None
    (dense, timed), missing = phase.sampled, _undrawn(phase)
    if missing:
        text = f"ratio of the medians of {len(timed.samples)} unprofiled samples"
        if dense.placements or timed.placements:
            text = f"ratio of {dense.in_words} (dense) to {timed.in_words} (pruned)"
        text += "; 95 % bootstrap interval" if has_interval else ""
        where = f" of {missing[0]}" if dense.placements or timed.placements else ""
        return f"{text}; placement in memory{where} was not drawn, {_PLACED}"
    if len(dense.placements or ()) == len(timed.placements or ()):
        text = f"ratio of means over {len(timed.placements or ())} placements, of the medians of "
        text += f"{len(timed.samples)} unprofiled samples in all"
    else:
        text = f"ratio of {dense.in_words} (dense) to {timed.in_words} (pruned)"
    return text + _asked(timed) + ("; 95 % interval over placements" if has_interval else "")


def _asked(timed: Unprofiled) -> str:
    """Why there are not as many placements as were asked for, where there are not."""
    asked = timed.placements_requested
    if not asked:
        return ""
    text = f" ({asked} placements were asked for, and "
    if asked > len(timed.placements or ()):
        return f"{text}no more drawn than --repeats and --max-placements allow)"
    return (
        f"{text}more drawn while the interval was wider than {numbers.percent(NARROW, decimals=0)})"
    )


def _alone(timed: Unprofiled | None) -> str:
    """Of a run without a baseline: that its time is of one placement, where it is."""
    if timed is None or timed.placements:
        return ""
    text = f"{numbers.time(timed.median)} a step without the profiler, {timed.in_words}"
    return f"{text}; placement in memory was not drawn, {_PLACED}"


def observer(phase: Phase) -> str:
    """What profiling cost, and in which domain the ledger is."""
    if phase.observer_ratio is None:
        return f"observer: unknown, no unprofiled samples; {_domain(phase)}"
    dense = phase.baseline.observer_ratio if phase.baseline else None
    also = f", dense {numbers.ratio(dense)}" if dense else ""
    text = f"observer: profiled wall ÷ unprofiled step = {numbers.ratio(phase.observer_ratio)}"
    return f"{text}{also}; {_domain(phase)}"


def _domain(phase: Phase) -> str:
    if phase.domain != "unprofiled":
        return "all times are as profiled"
    seated = all(one.placements for one in phase.sampled or ())
    kind = "means over placements of medians" if seated else "medians of the samples"
    text = f"the ledger closes to the unprofiled times ({kind})"
    if phase.observer_share is not None:
        text += f"; of the dense side {numbers.percent(phase.observer_share)} is the observer's"
    return text
