"""The series of a history: which commits moved the time of a step beyond its noise.

In: lines. Out: `HistorySeries`, one for each model, pruning, device, phase and number of tokens in
a step. Lines of one commit in a row are one measurement. A commit changes
a series where its time and the level of the commits since the change before differ by more than
the 95 % interval of their difference; that difference takes both intervals, or, after three commits
of a level, the spread between those.

Limitations: Each commit is judged at 95 %, so that one of twenty equal ones may be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from prunescope.analysis.schema.history import (
    HistoryChange,
    HistoryLine,
    HistoryPoint,
    HistorySeries,
)
from prunescope.taxonomy.student_t import t_quantile_975

LEAST_CHANGE = 0.005  # of the level: clocks and rounding move a step by less
_WHOLE = 1e-3  # tokens
_LEAST_SPREAD = 3  # commits of a level whose spread is its noise


@dataclass(frozen=True)
class Estimate:
    """A time, ns, with half of its 95 % interval, and its ends where they are not symmetric.

    None: nothing gives them.
    """

    ns: float
    half: float | None
    ends: Sequence[float] | None = None


def series_of(lines: Sequence[HistoryLine]) -> list[HistorySeries]:
    """Return the series of a history, each with lines of the same work, as they first occur."""
    keys = dict.fromkeys(map(_key, lines))
    return [_series([line for line in lines if _key(line) == key]) for key in keys]


def level_before(lines: Sequence[HistoryLine], line: HistoryLine) -> Estimate | None:
    """Return the level that the series of a new line has; None where there is none yet.

    Earlier measurements of the line's own commit are no part of it: a second run of a slow commit
    would pass.
    """
    same = [
        old
        for old in lines
        if _key(old) == _key(line) and (line.commit is None or old.commit != line.commit)
    ]
    return _follow(same)[2] if same else None


class _Key(NamedTuple):
    """What the lines of a series have in common; None is unknown."""

    model: str | None
    pruning: str | None
    device: str | None
    phase: str
    tokens: int | None


def _key(line: HistoryLine) -> _Key:
    """Return the key of the series that a line is in."""
    is_named = line.kind in (None, line.phase)
    phase = line.phase if is_named else f"{line.phase} ({line.kind})"
    tokens = (line.tokens_per_s or 0.0) * line.step_ns / 1e9
    # A mean over batches of several sizes is no whole number, and differs each time.
    is_one_size = tokens >= 1 and abs(tokens - round(tokens)) < _WHOLE
    return _Key(
        line.model, line.pruning, line.device, phase, round(tokens) if is_one_size else None
    )


def _series(lines: Sequence[HistoryLine]) -> HistorySeries:
    """Return the series of lines of one key."""
    points, changes, level = _follow(lines)
    valid = [line for line in lines if line.valid]
    last = valid[-1] if valid else None
    return HistorySeries(
        **_key(lines[0])._asdict(),
        points=points,
        changes=changes,
        level_ns=level.ns if level else None,
        level_ci95=_ends(level) if level else None,
        tokens_per_s=last.tokens_per_s if last else None,
        speedup=last.speedup if last else None,
    )


def _follow(
    lines: Sequence[HistoryLine],
) -> tuple[list[HistoryPoint], list[HistoryChange], Estimate | None]:
    """Follow a series: its points, its changes, and the level of the last one."""
    points: list[HistoryPoint] = []
    changes: list[HistoryChange] = []
    level: list[Estimate] = []  # the commits since the last change
    for _, group in groupby(lines, key=lambda line: line.commit or line.time):
        of_commit = list(group)
        measured = _measurement(of_commit)
        point = HistoryPoint(
            commit=of_commit[0].commit,
            time=of_commit[-1].time,
            lines=len(of_commit),
            ns=measured.ns if measured else None,
            ci95=_ends(measured) if measured else None,
            state="invalid" if measured is None else "level",
        )
        points.append(point)
        if measured is None:
            continue
        if level:
            before = _level(level)
            point.change = measured.ns / before.ns - 1
            noise = _noise(level, measured)
            if noise is None:
                point.state = "undecided"
            elif abs(point.change) > max(noise / before.ns, LEAST_CHANGE):
                point.state = "changed"
                changes.append(
                    HistoryChange(
                        commit=point.commit,
                        before_ns=before.ns,
                        after_ns=measured.ns,
                        change=point.change,
                        noise=noise / before.ns,
                    )
                )
                level = []
        level.append(measured)
    return points, changes, _level(level) if level else None


def _measurement(lines: Iterable[HistoryLine]) -> Estimate | None:
    """Return the mean of the valid lines of a commit; None where none is valid.

    Its interval is that of the only line, else the wider of Student's t over the lines and of what
    their own intervals give.
    """
    # The same trace analysed again is no second measurement.
    valid = [*{(line.subject, line.step_ns): line for line in lines if line.valid}.values()]
    if not valid:
        return None
    times = [line.step_ns for line in valid]
    halves = [(line.ci95[1] - line.ci95[0]) / 2 for line in valid if line.ci95]
    own = fmean(halves) / sqrt(len(valid)) if len(halves) == len(valid) else None
    between = _half_of_mean(times)
    known = [half for half in (own, between) if half is not None]
    ends = valid[0].ci95 if len(valid) == 1 else None
    return Estimate(fmean(times), max(known) if known else None, ends)


def _level(level: Sequence[Estimate]) -> Estimate:
    """Return the mean of the commits of a level, with the wider of its two intervals."""
    times = [estimate.ns for estimate in level]
    halves = [estimate.half for estimate in level if estimate.half is not None]
    own = hypot(*halves) / len(level) if len(halves) == len(level) else None
    between = _half_of_mean(times) if len(level) >= _LEAST_SPREAD else None
    known = [half for half in (own, between) if half is not None]
    return Estimate(fmean(times), max(known) if known else None)


def _noise(level: Sequence[Estimate], new: Estimate) -> float | None:
    """Return half of the 95 % interval of the difference of a commit and a level; None: unknown."""
    of_level = _level(level).half
    spread = None
    if len(level) >= _LEAST_SPREAD:
        spread = t_quantile_975(len(level) - 1) * stdev(estimate.ns for estimate in level)
    of_new = max((half for half in (new.half, spread) if half is not None), default=None)
    return None if of_level is None or of_new is None else hypot(of_level, of_new)


def _half_of_mean(times: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of the mean of some times; None for a single one."""
    count = len(times)
    return t_quantile_975(count - 1) * stdev(times) / sqrt(count) if count > 1 else None


def _ends(estimate: Estimate) -> list[float] | None:
    """Return the ends of an interval."""
    if estimate.ends is not None or estimate.half is None:
        return None if estimate.ends is None else list(estimate.ends)
    return [estimate.ns - estimate.half, estimate.ns + estimate.half]
