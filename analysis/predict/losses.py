"""The loss of each family over sparsity, from the runs of a sweep.

In: the folder of a sweep, or of any runs with their quality. Out: LossCurves, a family's relative
perplexity over its own sparsity, and the sparsity at a given loss. Losses are pruned over dense
perplexity - 1, after recovery where there was one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from prunescope.analysis.schema.pareto import MOST_RATIO
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.run import MANIFEST, Run, read_run
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
        """The sparsity at a loss, and its ends by the intervals of the losses; None where the
        largest sparsity loses less."""
        middle = self._at(loss, lambda point: point.loss)
        if middle is None:
            return None
        last = self.points[-1].sparsity
        low = self._at(loss, lambda point: point.high)
        high = self._at(loss, lambda point: point.low)
        return middle, min(middle, last if low is None else low), last if high is None else high

    def _at(self, loss: float, of: Callable[[LossPoint], float]) -> float | None:
        """Interpolates the logarithm of the perplexity linearly, from 0 at sparsity 0; a loss that
        falls with sparsity is noise."""
        before = sparsity = 0.0
        for point in self.points:
            here = max(before, math.log1p(of(point)))
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
        """The curves up to the largest usable loss: no line to a point beyond shows where a small
        loss lies. Raises PrunescopeError where nothing is left."""
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
        """The largest loss that every family reaches."""
        most: dict[str, float] = {}
        for curve in self.curves:
            most[curve.family] = max(curve.most, most.get(curve.family, 0.0))
        return min(most.values())


def read_losses(folder: Path | str) -> SweepLosses:
    """The losses of all runs under a folder whose method is a family and whose quality was
    measured.

    Raises PrunescopeError where there is none, or none with a loss.
    """
    path = Path(folder)
    if not path.is_dir():
        refuse_own_file(path)
        raise PrunescopeError(f"there is no folder {path}", hint="the --out folder of a sweep")
    found: defaultdict[tuple[Any, ...], list[tuple[float, float, float, float]]] = defaultdict(list)
    in_decode: defaultdict[tuple[Any, ...], set[float]] = defaultdict(set)
    knobs: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    models: dict[str, None] = {}
    # An answer is written token by token: where a sparsity has losses of both phases, those of
    # decode count, and prefill's may know later tokens.
    for run in sorted(_runs(path), key=lambda run: "decode" not in run.phases):
        loss = _loss(run)
        pruning = run.pruning
        if loss is None or pruning is None or not _sparsity(run):
            continue
        selection = pruning.selection and read_selection(pruning.selection)
        key = str(pruning.method), selection, str(sorted((pruning.knobs or {}).items()))
        if "decode" in run.phases:
            in_decode[key].add(_sparsity(run))
        elif _sparsity(run) in in_decode[key]:
            continue
        found[key].append((_sparsity(run), *loss))
        knobs[key] = pruning.knobs or {}
        models[str(run.model.id)] = None
    known = {family.id for family in families()}
    curves = tuple(
        LossCurve(key[0], key[1], knobs[key], _points(rows))
        for key, rows in sorted(found.items(), key=str)
        if key[0] in known
    )
    losing = tuple(curve for curve in curves if curve.most > 0)
    if not losing:
        raise PrunescopeError(
            f"no run in {path} records its loss",
            hint="each pruned run needs a `quality`, as `prunescope sweep` writes it",
        )
    return SweepLosses(losing, tuple(models))


def _runs(path: Path) -> Iterator[Run]:
    """Pruned runs at most three folders below: SWEEP/runs/ID/pruned."""
    for depth in ("pruned", "*/pruned", "*/*/pruned"):
        for manifest in sorted(path.glob(f"{depth}/{MANIFEST}")):
            yield read_run(manifest.parent)


def _sparsity(run: Run) -> float:
    """The sparsity in the family's own unit, also where the run was matched by another; 0: none."""
    pruning = run.pruning
    matched = pruning.match.own if pruning and pruning.match else None
    given = matched if matched is not None else pruning.sparsity if pruning else None
    return float(given) if given is not None and 0 < given < 1 else 0.0


def _loss(run: Run) -> tuple[float, float, float] | None:
    """(loss, low, high), after recovery where there was one; without an interval, its ends are the
    loss."""
    quality = run.quality
    if quality is None:
        return None
    value, ends = quality.perplexity_rel_recovered, quality.perplexity_rel_recovered_ci95
    if value is None:
        value, ends = quality.perplexity_rel, quality.perplexity_rel_ci95
    if value is None:
        return None
    found = (value, *(ends or (value, value)))
    return found if all(-1 < value < math.inf for value in found) else None


def _points(rows: Iterable[tuple[float, float, float, float]]) -> tuple[LossPoint, ...]:
    by_sparsity: defaultdict[float, list[tuple[float, float, float]]] = defaultdict(list)
    for sparsity, *loss in rows:
        by_sparsity[sparsity].append((loss[0], loss[1], loss[2]))
    return tuple(
        LossPoint(
            sparsity,
            median(loss for loss, _, _ in runs),
            min(low for _, low, _ in runs),
            max(high for _, _, high in runs),
        )
        for sparsity, runs in sorted(by_sparsity.items())
    )
