"""The keys and values that a sweep would need for a published number and does not have.

In: a published value, a Pareto, and curves of GEMMs. Out: the missing `key: value` texts, and
notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.schema.replay import SpeedupCurve
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

_LOSS_FIGURES = (PERPLEXITY, TASKS)


class MissingKey(NamedTuple):
    """A key of a sweep and the value that it lacks; `key` is empty if no key would help."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value}" if self.key else self.value


_ROWS_RUN = MissingKey("mode", "eager (steps of fixed shapes run other rows)")
_NO_RESULT = MissingKey("", "a result of this setting that is done")


def skips_rows(point: SweepPoint) -> bool:
    """Return whether a point runs as many rows as its sparsity says; True if it chooses none."""
    return point.unscored is None and not point.runs_every_row


def missing(
    published: PublishedValue, pareto: Pareto, curves: Sequence[SpeedupCurve]
) -> list[MissingKey]:
    """Return the keys and values, at least one, that a number needs and the sweep does not have.

    Args:
        published: The published number, for which the sweep has no value.
        pareto: The sweep.
        curves: The curves of replayed GEMMs.
    """
    if published.figure == GEMM_STEPS:
        return [_missing_size(published, curves)]
    return list(_missing_keys(published, pareto)) or [_NO_RESULT]


def _missing_size(published: PublishedValue, curves: Sequence[SpeedupCurve]) -> MissingKey:
    """Return the size, on the longest curve over the axis, that the published share needs."""
    axis = published.name.lower()
    largest = [max(c.curve.sizes) for c in curves if c.curve.axis == published.name]
    if not largest:
        return MissingKey(f"prunescope gemm over {published.name}", f"several --{axis}")
    size = round(max(largest) * (1 - float(published.at or 0)))
    return MissingKey(f"prunescope gemm --{axis}", str(size))


def _missing_keys(published: PublishedValue, pareto: Pareto) -> Iterator[MissingKey]:
    """Yield keys that the sweep lacks altogether; if it has each, those that its points lack."""
    every = [p for phase in pareto.phases.values() for p in phase.points]
    only = "layer" if published.figure == FIGURE_6 else "model"
    of_family = [p for p in every if p.family == published.name]
    is_of_step = published.figure in (FIGURE_2, STEP_TIME)
    if published.phase is not None and published.phase not in pareto.phases:
        yield MissingKey("phases", published.phase)
    if not any(p.only == only for p in every):
        yield MissingKey("only", only)
    if not of_family and not is_of_step:
        yield MissingKey("families", published.name)
    elif not is_of_step and not any(_has_sparsity(p, published) for p in of_family):
        yield MissingKey("sparsities", f"{published.sparsity:g}")
    if published.figure in _LOSS_FIGURES:
        if not pareto.subject.config.get("recover"):
            yield MissingKey("recover", "steps=1000,rank=16")
        judged = (p.loss for p in of_family if _has_sparsity(p, published))
        if published.figure == TASKS and not any(loss and loss.has_tasks for loss in judged):
            yield MissingKey("tasks", "[...]")
        return
    phase = pareto.phases.get(str(published.phase))
    points = [p for p in (phase.points if phase else ()) if p.only == only]
    here = [p for p in points if p.family == published.name and _has_sparsity(p, published)]
    if published.figure == ALIGNMENT:
        yield from _alignment_keys(published, here)
    elif here and not any(map(skips_rows, here)):
        yield _ROWS_RUN


def _alignment_keys(
    published: PublishedValue, points: Sequence[SweepPoint]
) -> Iterator[MissingKey]:
    """Yield the alignments that are missing.

    Other alignments are relative to the usual one. Finer ones must divide by no larger power of
    two.
    """
    there = {option for point in points for option in point.set}
    if not there & {f"align={ALIGN}", "align=paper"} and published.at != ALIGN:
        yield MissingKey("set", f"align={ALIGN}")
    finer = (published.at or "").isdecimal() and int(published.at or 0) < int(ALIGN)
    wanted = f"align={'just-' if finer else ''}{published.at}"
    if wanted not in there:
        yield MissingKey("set", wanted)


def _has_sparsity(point: SweepPoint, published: PublishedValue) -> bool:
    return published.sparsity in (point.sparsity, *point.sparsities)


def lacking(by_figure: Mapping[str, Sequence[Sequence[MissingKey]]]) -> list[str]:
    """Return a note for each figure with numbers that stay empty.

    It names each key with the values that are missing, and for how many numbers.

    Args:
        by_figure: What each number without a value needs, by the figure that prints it.
    """
    notes = []
    for figure, empty in by_figure.items():
        by_key: dict[str, list[str]] = {}
        for (key, value), count in Counter(name for names in empty for name in names).items():
            by_key.setdefault(key, []).append(f"{value} ({count})")
        parts = "; ".join(str(MissingKey(key, ", ".join(values))) for key, values in by_key.items())
        notes.append(f"{figure}: {len(empty)} stay empty, the sweep lacks {parts}")
    return notes
