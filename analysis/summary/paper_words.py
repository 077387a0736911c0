"""What a paper prints of a phase: its setting, its result and its statistic, in words.

In: a Phase of the Report, its subject and its device. Out: phrases that captions join, and the
sentence for the text of a paper, each of which stands alone. Numbers have the digits that their
intervals leave meaning to.
"""

from __future__ import annotations

from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed, SideFacts, Unprofiled
from prunescope.analysis.summary.headline import FAMILIES, has_nominal
from prunescope.analysis.summary.setting import LONGEST, setting_words
from prunescope.taxonomy import numbers
from prunescope.taxonomy.numbers import RoundedEstimate, estimate
from prunescope.taxonomy.words import plural, shortened, when


def method_name(subject: SideFacts) -> str:
    """Return the name of the method of a side: its display name, else what `--method` said."""
    return subject.get("display_name") or subject.get("method") or ""


def subject_words(subject: SideFacts, phase: Phase, *, unnamed: str | None = None) -> str:
    """Return what was measured: `SmolLM2 pruned by Ours`.

    Args:
        subject: The facts of the side.
        phase: The phase.
        unnamed: What a side without a model is called; None: by the name of its trace.
    """
    name = unnamed or subject.get("name") or "the model"
    model = shortened(subject.get("model") or name, LONGEST)
    verdict = phase.family
    seen = verdict.id if verdict and verdict.id not in FAMILIES else ""
    method = shortened(method_name(subject) or seen, LONGEST)
    return f"{model} pruned by {method}" if method else model


def realised(phase: Phase) -> RoundedEstimate | None:
    """Return the speedup of a phase with its interval; None without a baseline."""
    ladder = phase.ladder
    return None if ladder is None else estimate(ladder.realised, ladder.realised_ci95, against=1.0)


def why_no_speedup(phase: Phase) -> str:
    """Return why the ratio of two steps is no speedup; empty if it is one."""
    if not phase.is_speedup:
        return "dense and pruned differ in more than the pruning"
    if phase.invalid_times:
        is_sampled = phase.unprofiled_ns is not None
        samples = "its samples vary too much or were disturbed"
        return samples if is_sampled else "its steps were interrupted"
    if phase.lacks_sizes:
        return "its trace holds no shapes that show what was pruned"
    return ""


def result_words(phase: Phase) -> str:
    """Return the result of a phase: the speedup and what was promised, or why there is none."""
    speed, ladder = realised(phase), phase.ladder
    if speed is None or ladder is None:
        return f"{_step_time(phase)} a step"
    if why := why_no_speedup(phase):
        return f"no speedup is reported, as {why}"
    text = f"{speed} times as fast as the dense model"
    if ladder.realised_ci95 and ladder.holds_one:
        text = f"not measurably faster than the dense model ({speed} times)"
    if has_nominal(phase, ladder):
        promise = estimate(ladder.nominal)
        source = "promised" if phase.has_promise else "allowed by its FLOPs"
        text += f"; {promise} {source}"
    return text


def statistic_words(phase: Phase) -> str:
    """Return the statistic of the result, n, and what its interval is over."""
    if phase.ladder is None:
        timed = phase.unprofiled_ns
        if timed is None:
            return f"mean of n = {_counted(phase.steps, 'profiled step')}"
        return f"{_middle(timed)} of n = {_counted(len(timed.samples), 'unprofiled sample')}"
    has_interval = phase.ladder.realised_ci95 is not None
    if phase.sampled is None:
        text = f"ratio of means of n = {_counted(phase.steps, 'profiled step')}"
        return text + when(has_interval, "; 95 % bootstrap interval over steps")
    dense, pruned = phase.sampled
    counts = [len(dense.samples), len(pruned.samples)]
    sides = f"n = {counts[1]} unprofiled samples a side"
    if counts[0] != counts[1]:
        sides = f"n = {counts[0]} dense and {counts[1]} pruned unprofiled samples"
    if dense.placements and pruned.placements:
        text = f"ratio of geometric means over {len(pruned.placements)} placements of medians"
        return f"{text}, {sides}" + when(has_interval, "; 95 % interval over placements")
    return f"ratio of medians, {sides}" + when(has_interval, "; 95 % bootstrap interval")


def paper_sentence(name: str, phase: Phase, subject: SideFacts, device: DeviceUsed) -> str:
    """Return the sentence that states a result in a paper, with its setting and statistic."""
    where = ", ".join(setting_words(phase, name, device.get("name")))
    what = subject_words(subject, phase, unnamed="the traced model")
    statistic = statistic_words(phase)
    if phase.ladder is None:
        return f"A step of {what} takes {_step_time(phase)} ({where}; {statistic})."
    if why := why_no_speedup(phase):
        return f"No speedup of {what} is reported ({where}): {why}."
    return f"{what} is {result_words(phase)} ({where}; {statistic})."


def setting_caption(name: str, phase: Phase, subject: SideFacts, device: DeviceUsed) -> str:
    """Return the sentence of a caption that says what was measured, and how it was run."""
    words = ", ".join(setting_words(phase, name, device.get("name")))
    return f"{subject_words(subject, phase)}; {words}."


def caption_words(name: str, phase: Phase, subject: SideFacts, device: DeviceUsed) -> str:
    """Return the sentences of a caption: what was measured and how, its result and statistic."""
    setting = setting_caption(name, phase, subject, device)
    result, statistic = capital(result_words(phase)), capital(statistic_words(phase))
    return f"{setting} {result}. {statistic}."


def _step_time(phase: Phase) -> str:
    """Return the time of a step with its interval, in one unit."""
    timed = phase.unprofiled_ns
    ns, ci95 = (timed.median, timed.ci95) if timed else (phase.step_time_ns, None)
    unit = numbers.scale([ns])
    shown = estimate(ns / unit.per, ci95 and [end / unit.per for end in ci95])
    return f"{shown} {unit.unit}" if shown else numbers.UNKNOWN


def _middle(timed: Unprofiled) -> str:
    if not timed.placements:
        return "median"
    return f"geometric mean over {len(timed.placements)} placements of medians"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{plural(count)}"


def capital(text: str) -> str:
    """Return a sentence with a capital letter at its begin."""
    return f"{text[:1].upper()}{text[1:]}"
