"""The loss of each family over sparsity, from the runs of a sweep.

The folder of a sweep, or of any runs with their quality, gives LossCurves, a family's relative
perplexity over its own sparsity, and the sparsity at a given loss. Losses are pruned over dense
perplexity - 1, after recovery where there was one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from prunescope.analysis.schema.pareto import MOST_RATIO
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run
from prunescope.taxonomy.words import factor


@dataclass(frozen=True, slots=True)
class LossPoint:
    """A sparsity and its loss: the median of its runs, and the ends of their intervals."""

    sparsity: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The losses of a family with one `select` and one set of knobs, by ascending sparsity."""

    family: str
    select: str | None
    knobs: Mapping[str, Any]
    points: tuple[LossPoint, ...]

    def sparsities_at(self, loss: float) -> tuple[float, float, float] | None:
        """Return the sparsity at a loss, and its ends by the intervals of the losses.

        Returns None where the largest sparsity loses less.
        """
        middle = self._interpolate(loss, lambda point: point.loss)
        if middle is None:
            return None
        last = self.points[-1].sparsity
        low = self._interpolate(loss, lambda point: point.high)
        high = self._interpolate(loss, lambda point: point.low)
        return middle, min(middle, last if low is None else low), last if high is None else high

    def _interpolate(self, loss: float, of_point: Callable[[LossPoint], float]) -> float | None:
        """Return the sparsity at a loss; None where the largest sparsity loses less.

        The logarithm of the perplexity is linear between points, from 0 at sparsity 0; a loss that
        falls with sparsity is noise.
        """
        before = sparsity = 0.0
        for point in self.points:
            here = max(before, math.log1p(of_point(point)))
            if here >= math.log1p(loss):
                step = here - before
                share = (math.log1p(loss) - before) / step if step else 1.0
                return sparsity + share * (point.sparsity - sparsity)
            before, sparsity = here, point.sparsity
        return None

    @property
    def most(self) -> float:
        """The largest loss that was measured."""
        return max(point.loss for point in self.points)


@dataclass(frozen=True, slots=True)
class SweepLosses:
    """The curves of a folder, and the models that were run."""

    curves: tuple[LossCurve, ...]
    models: tuple[str, ...]

    def usable(self) -> SweepLosses:
        """Return the curves up to the largest usable loss.

        No line to a point beyond it shows where a small loss lies. Raises PrunescopeError where no
        point is usable.
        """
        near = [
            replace(curve, points=tuple(p for p in curve.points if 1 + p.loss <= MOST_RATIO))
            for curve in self.curves
        ]
        kept = tuple(curve for curve in near if curve.points and curve.most > 0)
        if not kept:
            least = min(point.loss for curve in self.curves for point in curve.points)
            raise PrunescopeError(
                f"no run is usable: its perplexity must be at most {MOST_RATIO:g}× that of the "
                f"dense model, and the lowest here is {factor(least) or f'{1 + least:.3g}×'}",
                hint="evaluate lower sparsities: `sparsities` in the file of the sweep",
            )
        return replace(self, curves=kept)

    def common(self) -> float:
        """Return the largest loss that every family reaches."""
        most: dict[str, float] = {}
        for curve in self.curves:
            most[curve.family] = max(curve.most, most.get(curve.family, 0.0))
        return min(most.values())


def read_losses(folder: Path | str) -> SweepLosses:
    """Return the losses of all pruned runs under a folder.

    Runs count whose method is a family and whose quality was measured.

    Args:
        folder: The folder of a sweep, or of any runs.

    Returns:
        The losses.

    Raises:
        PrunescopeError: There is no such run, or none with a loss.
    """
    path = Path(folder)
    if not path.is_dir():
        refuse_own_file(path)
        raise PrunescopeError(f"there is no folder {path}", hint="the --out folder of a sweep")
    losses: defaultdict[tuple[Any, ...], list[tuple[float, float, float, float]]] = defaultdict(
        list
    )
    in_decode: defaultdict[tuple[Any, ...], set[float]] = defaultdict(set)
    knobs: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    models: dict[str, None] = {}
    # An answer is written token by token: where a sparsity has losses of both phases, those of
    # decode count, as those of prefill may know later tokens.
    for run in sorted(_pruned_runs(path), key=lambda run: "decode" not in run.phases):
        loss = _loss_of(run)
        pruning = run.pruning
        if loss is None or pruning is None or not _own_sparsity(run):
            continue
        selection = pruning.selection and read_selection(pruning.selection)
        key = str(pruning.method), selection, str(sorted((pruning.knobs or {}).items()))
        if "decode" in run.phases:
            in_decode[key].add(_own_sparsity(run))
        elif _own_sparsity(run) in in_decode[key]:
            continue
        losses[key].append((_own_sparsity(run), *loss))
        knobs[key] = pruning.knobs or {}
        models[str(run.model.id)] = None
    known = {family.id for family in families()}
    curves = tuple(
        LossCurve(key[0], key[1], knobs[key], _merge_runs(rows))
        for key, rows in sorted(losses.items(), key=str)
        if key[0] in known
    )
    losing = tuple(curve for curve in curves if curve.most > 0)
    if not losing:
        raise PrunescopeError(
            f"no run in {path} records its loss",
            hint="each pruned run needs a `quality`, as `prunescope sweep` writes it",
        )
    return SweepLosses(losing, tuple(models))


def _pruned_runs(path: Path) -> Iterator[Run]:
    """Yield pruned runs at most three folders below: SWEEP/runs/ID/pruned."""
    for depth in ("pruned", "*/pruned", "*/*/pruned"):
        for manifest in sorted(path.glob(f"{depth}/{MANIFEST}")):
            yield read_run(manifest.parent)


def _own_sparsity(run: Run) -> float:
    """Return the sparsity in the family's own unit, also where the run was matched by another.

    Returns 0 where there is none.
    """
    pruning = run.pruning
    matched = pruning.match.own if pruning and pruning.match else None
    given = matched if matched is not None else pruning.sparsity if pruning else None
    return float(given) if given is not None and 0 < given < 1 else 0.0


def _loss_of(run: Run) -> tuple[float, float, float] | None:
    """Return (loss, low, high) of a run, after recovery where there was one.

    Without an interval, its ends are the loss. Returns None where the loss is unknown.
    """
    quality = run.quality
    if quality is None:
        return None
    value, ends = quality.perplexity_rel_recovered, quality.perplexity_rel_recovered_ci95
    if value is None:
        value, ends = quality.perplexity_rel, quality.perplexity_rel_ci95
    if value is None:
        return None
    low, high = ends or (value, value)
    return (value, low, high) if all(-1 < end < math.inf for end in (value, low, high)) else None


def _merge_runs(rows: Iterable[tuple[float, float, float, float]]) -> tuple[LossPoint, ...]:
    """Return a point per sparsity, by ascending sparsity."""
    points = []
    for sparsity, runs in groupby(sorted(rows), key=itemgetter(0)):
        _, losses, lows, highs = zip(*runs, strict=True)
        points.append(LossPoint(sparsity, median(losses), min(lows), max(highs)))
    return tuple(points)
