"""What of a sweep comes first, and the part that fits into a number of hours.

In: the results that are left, and a function that estimates the seconds of any of them. Out: their
order, and a Budget. First comes what answers the claims and decides the frontiers. The claims
compare families within one batch, length and way to run. All families at one sparsity are therefore
one step, and the steps are in the order of cells, so that one cell is whole before the next begins.
Further random samples come last, as they only narrow the interval of a point. Points with an option
of a family come after those without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.words import rough_time, when

_HOUR = 3600.0
# What identifies the measured point of a result, without the options of its family.
_measured_point = attrgetter("family", "sparsity", "select", "draw", "phase", "setting")
_SHOWN = 6  # the most counts that a line names


@dataclass(frozen=True)
class Budget:
    """The part of a sweep that runs within `hours`, and the seconds of it and of the rest."""

    hours: float
    kept: tuple[Planned, ...]
    left_out: tuple[Planned, ...]
    seconds: float
    left_out_seconds: float

    def lines(self) -> list[str]:
        """Return the lines that tell the results within the budget, those left out, and why."""
        total = len(self.kept) + len(self.left_out)
        lines = [
            f"--budget {self.hours:g}: {len(self.kept)} of {total} results, about "
            f"{rough_time(self.seconds)}: {_format_counts(self.kept)}"
        ]
        if self.left_out:
            lines.append(
                f"left out, as about {rough_time(self.left_out_seconds)} more would not fit: "
                f"{_format_counts(self.left_out)}"
            )
        return lines


def fit_budget(
    results: Sequence[Planned], hours: float, seconds_of: Callable[[Sequence[Planned]], float]
) -> Budget:
    """Take the first steps of the results whose estimate stays below the hours.

    Args:
        results: The results that are left.
        hours: The hours that they may take.
        seconds_of: The function that estimates the seconds of results together.

    Returns:
        The budget, with the results that fit and those that do not.

    Raises:
        PrunescopeError: Not even the first step fits.
    """
    ordered = decisive_first(results)
    steps = [list(step) for _, step in groupby(ordered, key=_sort_key(results))]
    kept: list[Planned] = []
    seconds = 0.0
    for step in steps:
        longer = seconds_of([*kept, *step])
        if longer > hours * _HOUR:
            break
        kept, seconds = [*kept, *step], longer
    if steps and not kept:
        first = seconds_of(steps[0])
        raise PrunescopeError(
            f"--budget {hours:g} is too little for the first step, which takes about "
            f"{rough_time(first)}: {_format_counts(steps[0])}",
            hint=f"--budget {first / _HOUR * 1.1:.2g}, or fewer repeats, shorter prompts, a "
            "smaller model",
        )
    left = ordered[len(kept) :]
    whole = seconds_of(ordered) if left else seconds
    return Budget(hours, tuple(kept), tuple(left), seconds, whole - seconds)


def decisive_first(results: Iterable[Planned]) -> list[Planned]:
    """Sort results so that those that decide claims and frontiers come before the others.

    A sweep that is stopped then has all families in its first cells, at their ends, not some
    families in all cells.
    """
    results = list(results)
    return sorted(results, key=_sort_key(results))


def _sort_key(results: Iterable[Planned]) -> Callable[[Planned], tuple[int, ...]]:
    """Return the key by which results are sorted into steps.

    Random samples come one after the other. Within a sample whole models come before layers, cells
    with few tokens first, prefill before decode (two of the three claims are about it), and the
    largest sparsity before the others, from the smallest on. Points of a family under options of
    `set` follow if the family is there without them too.
    """
    results = list(results)
    usual = {_measured_point(result) for result in results if not result.set}
    cells = sorted(
        {result.setting for result in results},
        key=lambda cell: (cell.only != "model", cell.batch * cell.prompt_len, cell),
    )
    place = {cell: number for number, cell in enumerate(cells)}
    shares = sorted({result.sparsity for result in results if result.sparsity is not None})
    rank = {share: number for number, share in enumerate([*shares[-1:], *shares[:-1]])}

    def key(result: Planned) -> tuple[int, ...]:
        share = -1 if result.sparsity is None else rank[result.sparsity]
        varies = bool(result.set) and _measured_point(result) in usual
        return result.draw, varies, place[result.setting], result.phase != "prefill", share

    return key


def _format_counts(results: Sequence[Planned]) -> str:
    """Return the number of results for each random sample and cell."""
    counts = Counter(
        f"random sample {result.draw + 1}" if result.draw else _format_cell(result)
        for result in results
    )
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def _format_cell(result: Planned) -> str:
    options = ", ".join(word.partition("=")[0] for word in result.set)
    return f"{result.where} {result.phase}{when(bool(options), f' by {options}')}"
