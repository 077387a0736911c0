"""The part of a sweep that fits into a number of hours, what answers its claims first.

In: results that are left, and what estimates the seconds of any of them. Out: a Budget. The claims
compare families within one batch, length and way to run: all families at one sparsity are a step,
and the steps are in the order of cells, so that one cell is whole before the next begins. Further
random samples come last: they narrow what is known of a point, and answer nothing new. Points that
ask what an option of a family is worth come after those without the option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.sweep_files import Planned

_HOUR = 3600.0
_MINUTE = 60.0
_SHOWN = 6  # parts of what is left out that are named


@dataclass(frozen=True)
class Budget:
    """The part of a sweep that runs within `hours`; `seconds`: of it, and of the rest."""

    hours: float
    kept: tuple[Planned, ...]
    left_out: tuple[Planned, ...]
    seconds: float
    left_out_seconds: float

    def lines(self) -> list[str]:
        """Lines on the results within the budget, those left out, and why."""
        total = len(self.kept) + len(self.left_out)
        found = [
            f"--budget {self.hours:g}: {len(self.kept)} of {total} results, about "
            f"{_time(self.seconds)}: {_parts(self.kept)}"
        ]
        if self.left_out:
            found.append(
                f"left out, as about {_time(self.left_out_seconds)} more would not fit: "
                f"{_parts(self.left_out)}"
            )
        return found


def within(
    results: Sequence[Planned], hours: float, seconds_of: Callable[[Sequence[Planned]], float]
) -> Budget:
    """The first steps of `results` whose estimate stays below `hours`.

    Raises PrunescopeError where not even the first one does.
    """
    ordered = sorted(results, key=_order(results))
    steps = [list(step) for _, step in groupby(ordered, key=_order(results))]
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
            f"{_time(first)}: {_parts(steps[0])}",
            hint=f"--budget {first / _HOUR * 1.1:.2g}, or fewer repeats, shorter prompts, a "
            "smaller model",
        )
    left = ordered[len(kept) :]
    whole = seconds_of(ordered) if left else seconds
    return Budget(hours, tuple(kept), tuple(left), seconds, whole - seconds)


def _order(results: Iterable[Planned]) -> Callable[[Planned], tuple[int, ...]]:
    """The sort key of results: by random sample, then whole models before layers, cells with few
    tokens first, prefill before decode (two of the three claims are about it), and the ends of the
    sparsities first. Points of a family under options of `set` follow where it is there without
    them too."""
    results = list(results)
    usual = {_point(one) for one in results if not one.set}
    cells = sorted(
        {one.setting for one in results},
        key=lambda cell: (cell.only != "model", cell.batch * cell.prompt_len, cell),
    )
    place = {cell: number for number, cell in enumerate(cells)}
    shares = sorted({one.sparsity for one in results if one.sparsity is not None})
    ends_first = [*shares[-1:], *shares[:-1]]
    rank = {share: number for number, share in enumerate(ends_first)}

    def key(one: Planned) -> tuple[int, ...]:
        share = -1 if one.sparsity is None else rank[one.sparsity]
        varies = bool(one.set) and _point(one) in usual
        return one.draw, varies, place[one.setting], one.phase != "prefill", share

    return key


def _point(one: Planned) -> tuple[object, ...]:
    """The measured point of a result, without the options of its family."""
    return one.family, one.sparsity, one.select, one.draw, one.phase, one.setting


def _time(seconds: float) -> str:
    """Hours; below one, minutes; below two minutes, seconds."""
    if seconds < 2 * _MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR:
        return f"{round(seconds / _MINUTE)} min"
    return f"{seconds / _HOUR:.3g} h"


def _parts(results: Sequence[Planned]) -> str:
    """Results by random sample and cell, with how many of each."""
    counts = Counter(f"random sample {one.draw + 1}" if one.draw else _cell(one) for one in results)
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def _cell(one: Planned) -> str:
    options = ", ".join(word.partition("=")[0] for word in one.set)
    return f"{one.where} {one.phase}" + (f" by {options}" if options else "")
