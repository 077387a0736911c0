"""The setting of points of a sweep in words, for captions.

In: a Pareto and points of it. Out: model, methods, sparsities, phases, batches, lengths, format and
machine, and how often each result was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.taxonomy.words import plural

_MOST_NAMED = 8  # methods or sparsities


def setting_of_points(pareto: Pareto, phases: Sequence[str], points: Iterable[SweepPoint]) -> str:
    """Return the last sentences of a caption: what was measured, where, how often.

    Args:
        pareto: The comparison of the sweep.
        phases: The names of the phases.
        points: The points.
    """
    points = list(points)
    return f"{', '.join(setting_facts(pareto, phases, points))}; {count_words(pareto, points)}"


def setting_facts(pareto: Pareto, phases: Sequence[str], points: Sequence[SweepPoint]) -> list[str]:
    """Return what was measured and where: model, methods, sparsities, sizes, format, machine."""
    subject = pareto.subject
    threads = f"{subject.threads} thread{plural(subject.threads)}" if subject.threads else None
    facts = setting_of(
        [subject.model],
        [point.label for point in points],
        [point.sparsity for point in points],
        phases,
        ([point.batch for point in points], [point.prompt_len for point in points]),
    )
    facts += shared_settings(point.where for point in points)
    return facts + [str(fact) for fact in (subject.dtype, subject.device, threads) if fact]


def setting_of(
    models: Iterable[str | None],
    methods: Iterable[str],
    sparsities: Iterable[float | None],
    phases: Iterable[str],
    sizes: tuple[Iterable[int | None], Iterable[int | None]],
) -> list[str]:
    """Return the words of a setting, each of them as a list where there are several values.

    Args:
        models: The models.
        methods: The methods.
        sparsities: The sparsities, which may be unknown.
        phases: The phases.
        sizes: The batches and the lengths.
    """
    shares = sorted({share for share in sparsities if share is not None})
    batches, lengths = (sorted({size for size in own if size is not None}) for own in sizes)
    words = [_listed(filter(None, models), "models"), _listed(methods, "methods")]
    words.append(f"s = {_listed([f'{share:g}' for share in shares], 'values')}" if shares else "")
    words.append(_listed(phases, "phases"))
    words.append(f"batch {_joined([f'{size:,}' for size in batches])}" if batches else "")
    words.append(f"{_joined([f'{size:,}' for size in lengths])} tokens" if lengths else "")
    return [word for word in words if word]


def count_words(pareto: Pareto, points: Iterable[SweepPoint]) -> str:
    """Return how often each result was measured, and the statistic, as the end of a caption."""
    config = pareto.subject.config
    count = sum(max(1, len(point.draws)) for point in points)
    measured = f"n = {count} result{plural(count)}"
    placements = config.get("placements", config.get("seatings"))
    until = config.get("until")
    if until:
        measured += f", until the interval of a speedup was ±{100 * until:g} %"
        measured += f", in at most {placements} placements"
    elif repeats := config.get("repeats"):
        measured += f" of {repeats} unprofiled samples"
        measured += f" in {placements} placements" if placements else ""
    if steps := config.get("steps"):
        measured += f" and at most {steps} profiled steps"
    ratio = "ratios of geometric means over placements of medians" if placements else ""
    return f"{measured}{'; ' if ratio else ''}{ratio}."


def shared_settings(settings: Iterable[str]) -> list[str]:
    """Return the settings other than batch and length that all have, in the order of the first."""
    every = [split_setting(where)[1] for where in settings]
    return [word for word in (every[0] if every else []) if all(word in each for each in every)]


def split_setting(where: str) -> tuple[list[str], list[str]]:
    """Split the words of a setting into batch and length, and what is not as usual."""
    words = where.split(", ")
    return words[:2], words[2:]


def _listed(names: Iterable[str], noun: str) -> str:
    """Return names joined as a list, or how many there are."""
    distinct = list(dict.fromkeys(names))
    return _joined(distinct) if len(distinct) <= _MOST_NAMED else f"{len(distinct)} {noun}"


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
