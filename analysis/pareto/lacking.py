"""The keys and values that a sweep would need for a published number and does not have.

In: a published value, a Pareto, curves of GEMMs. Out: `key: value` of each, and notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.schema.replay import SpeedupCurve
from prunescope.analysis.schema.reproduction import Reproduction
from prunescope.taxonomy.keep import ALIGN
from prunescope.taxonomy.paper import (
    ALIGNMENT,
    FIGURE_2,
    FIGURE_6,
    GEMM_STEPS,
    PERPLEXITY,
    STEP_TIME,
    TASKS,
    PublishedValue,
)

_OF_LOSS = (PERPLEXITY, TASKS)
_ROWS_RUN = "mode: eager (steps of fixed shapes run other rows)"


def skips_rows(point: SweepPoint) -> bool:
    """Whether a point that chooses rows runs as many as its sparsity says; true of others."""
    return point.unscored is None and not point.runs_every_row


def missing(one: PublishedValue, found: Pareto, curves: Sequence[SpeedupCurve]) -> list[str]:
    """The missing keys and values of a number that the sweep does not have; at least one."""
    if one.figure == GEMM_STEPS:
        return [_size(one, curves)]
    return list(_keys(one, found)) or ["a result of this setting that is done"]


def _size(one: PublishedValue, curves: Sequence[SpeedupCurve]) -> str:
    """The size of the longest curve over the axis that has no point near the share."""
    axis = one.name.lower()
    largest = [max(of.curve.sizes) for of in curves if of.curve.axis == one.name]
    if not largest:
        return f"prunescope gemm over {one.name}: several --{axis}"
    return f"prunescope gemm --{axis}: {round(max(largest) * (1 - float(one.at or 0)))}"


def _keys(one: PublishedValue, found: Pareto) -> Iterator[str]:
    """Keys of which the sweep has nothing at all; where it has each, those of its points here."""
    every = [p for phase in found.phases.values() for p in phase.points]
    only = "layer" if one.figure == FIGURE_6 else "model"
    of_family = [p for p in every if p.family == one.name]
    is_of_step = one.figure in (FIGURE_2, STEP_TIME)
    if one.phase is not None and one.phase not in found.phases:
        yield f"phases: {one.phase}"
    if not any(p.only == only for p in every):
        yield f"only: {only}"
    if not of_family and not is_of_step:
        yield f"families: {one.name}"
    elif not is_of_step and not any(_has_sparsity(p, one) for p in of_family):
        yield f"sparsities: {one.sparsity:g}"
    if one.figure in _OF_LOSS:
        yield from _of_loss(one, [p for p in of_family if _has_sparsity(p, one)], found)
        return
    phase = found.phases.get(str(one.phase))
    points = [p for p in (phase.points if phase else ()) if p.only == only]
    here = [p for p in points if p.family == one.name and _has_sparsity(p, one)]
    if one.figure == ALIGNMENT:
        yield from _of_alignment(one, here)
    elif here and not any(map(skips_rows, here)):
        yield _ROWS_RUN


def _of_loss(one: PublishedValue, points: Sequence[SweepPoint], found: Pareto) -> Iterator[str]:
    if not found.subject.config.get("recover"):
        yield "recover: steps=1000,rank=16"
    if one.figure == TASKS and not any(p.loss and p.loss.has_tasks for p in points):
        yield "tasks: [...]"


def _of_alignment(one: PublishedValue, points: Sequence[SweepPoint]) -> Iterator[str]:
    """Other alignments are relative to the usual one, and are just multiples of their number."""
    there = {option for point in points for option in point.set}
    if not there & {f"align={ALIGN}", "align=paper"} and one.at != ALIGN:
        yield f"set: align={ALIGN}"
    finer = (one.at or "").isdecimal() and int(one.at or 0) < int(ALIGN)
    wanted = f"align={'just-' if finer else ''}{one.at}"
    if wanted not in there:
        yield f"set: {wanted}"


def _has_sparsity(point: SweepPoint, one: PublishedValue) -> bool:
    return one.sparsity in (point.sparsity, *point.sparsities)


def lacking(made: Reproduction) -> list[str]:
    """A note a figure with numbers that stay empty: each key with the values that are not there,
    and for how many numbers."""
    notes = []
    for figure in dict.fromkeys(one.figure for one in made.values):
        empty = [one for one in made.values if one.figure == figure and one.missing]
        counts = Counter(key for one in empty for key in one.missing or ())
        if not empty:
            continue
        by_key: dict[str, list[str]] = {}
        for name, count in counts.items():
            key, colon, value = name.partition(": ")
            by_key.setdefault(key + colon, []).append(f"{value} ({count})".strip())
        parts = "; ".join(f"{key}{', '.join(values)}" for key, values in by_key.items())
        notes.append(f"{figure}: {len(empty)} stay empty, the sweep lacks {parts}")
    return notes
