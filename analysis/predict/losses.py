"""What each family loses at which sparsity: the runs of a sweep, read for their quality alone.

In: the folder of a sweep, or of any judged runs. Out: Curves, a family's relative perplexity over
its own sparsity, and the sparsity at which it loses as much as is asked. Losses are pruned over
dense - 1, after recovery where the runs were recovered.
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
from prunescope.taxonomy.run import MANIFEST, Run, read_run
from prunescope.taxonomy.words import factor

_NONE = "each pruned run needs a `quality`, as `prunescope sweep` writes it"


@dataclass(frozen=True, slots=True)
class JudgedSparsity:
    """A sparsity and its loss: the median of its draws, and how low and how high it may be."""

    sparsity: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A family, chosen in one way (`select`) and with its knobs, by ascending sparsity."""

    family: str
    select: str | None
    knobs: Mapping[str, Any]
    points: tuple[JudgedSparsity, ...]

    def sparsities_at(self, loss: float) -> tuple[float, float, float] | None:
        """The sparsity that loses this much, and the ends that the losses' intervals give; None
        where even the largest that was judged loses less."""
        middle = self._at(loss, lambda one: one.loss)
        if middle is None:
            return None
        last = self.points[-1].sparsity
        low = self._at(loss, lambda one: one.high)
        high = self._at(loss, lambda one: one.low)
        return middle, min(middle, last if low is None else low), last if high is None else high

    def _at(self, loss: float, of: Callable[[JudgedSparsity], float]) -> float | None:
        """Between neighbours the logarithm of the perplexity is linear; at sparsity 0 nothing is
        lost; a loss that falls again with sparsity is noise."""
        before = sparsity = 0.0
        for one in self.points:
            here = max(before, math.log1p(of(one)))
            if here >= math.log1p(loss):
                step = here - before
                share = (math.log1p(loss) - before) / step if step else 1.0
                return sparsity + share * (one.sparsity - sparsity)
            before, sparsity = here, one.sparsity
        return None

    @property
    def most(self) -> float:
        """The largest loss that was judged."""
        return max(one.loss for one in self.points)


@dataclass(frozen=True, slots=True)
class SweepLosses:
    """The curves of a folder, and the models that they are of."""

    curves: tuple[Curve, ...]
    models: tuple[str, ...]

    def usable(self) -> SweepLosses:
        """The curves as far as anyone would use them: no line to a point beyond that tells where a
        small loss lies. Raises PrunescopeError where nothing is left."""
        near = [
            replace(one, points=tuple(p for p in one.points if 1 + p.loss <= MOST_RATIO))
            for one in self.curves
        ]
        kept = tuple(one for one in near if one.points and one.most > 0)
        if not kept:
            least = min(one.loss for curve in self.curves for one in curve.points)
            raise PrunescopeError(
                f"no judged run loses so little that anyone would use it: {MOST_RATIO:g}× the "
                f"perplexity of the dense model at most, {factor(least) or f'{1 + least:.3g}×'} "
                "at least",
                hint="judge lower sparsities: `sparsities` in the file of the sweep",
            )
        return replace(self, curves=kept)

    def common(self) -> float:
        """The largest loss that every family reaches."""
        most: dict[str, float] = {}
        for one in self.curves:
            most[one.family] = max(one.most, most.get(one.family, 0.0))
        return min(most.values())


def read_losses(folder: Path | str) -> SweepLosses:
    """The losses of every judged run under a folder, of families alone.

    Raises PrunescopeError where there is none, or none that lost anything.
    """
    path = Path(folder)
    if not path.is_dir():
        raise PrunescopeError(f"there is no folder {path}", hint="the --out folder of a sweep")
    found: defaultdict[tuple[Any, ...], list[tuple[float, float, float, float]]] = defaultdict(list)
    knobs: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    models: dict[str, None] = {}
    for run in _runs(path):
        loss = _loss(run)
        pruning = run.pruning
        if loss is None or pruning is None or not _sparsity(run):
            continue
        selection = pruning.selection and read_selection(pruning.selection)
        key = str(pruning.method), selection, str(sorted((pruning.knobs or {}).items()))
        found[key].append((_sparsity(run), *loss))
        knobs[key] = pruning.knobs or {}
        models[str(run.model.id)] = None
    known = {one.id for one in families()}
    curves = tuple(
        Curve(key[0], key[1], knobs[key], _points(rows))
        for key, rows in sorted(found.items(), key=str)
        if key[0] in known
    )
    if not any(one.most > 0 for one in curves):
        raise PrunescopeError(f"no run in {path} tells what it lost", hint=_NONE)
    return SweepLosses(tuple(one for one in curves if one.most > 0), tuple(models))


def _runs(path: Path) -> Iterator[Run]:
    """Pruned runs at most three folders below: SWEEP/runs/ID/pruned."""
    for depth in ("pruned", "*/pruned", "*/*/pruned"):
        for manifest in sorted(path.glob(f"{depth}/{MANIFEST}")):
            yield read_run(manifest.parent)


def _sparsity(run: Run) -> float:
    """That of the family's own unit, where the run was matched by another."""
    pruning = run.pruning
    own = pruning.match.own if pruning and pruning.match else None
    given = own if own is not None else pruning.sparsity if pruning else None
    return float(given) if given is not None and 0 < given < 1 else 0.0


def _loss(run: Run) -> tuple[float, float, float] | None:
    """After recovery where there was one; the ends are the value where no interval is known."""
    quality = run.quality
    if quality is None:
        return None
    value, ends = quality.perplexity_rel_recovered, quality.perplexity_rel_recovered_ci95
    if value is None:
        value, ends = quality.perplexity_rel, quality.perplexity_rel_ci95
    if value is None:
        return None
    found = (value, *(ends or (value, value)))
    return found if all(-1 < one < math.inf for one in found) else None


def _points(rows: Iterable[tuple[float, float, float, float]]) -> tuple[JudgedSparsity, ...]:
    by: defaultdict[float, list[tuple[float, float, float, float]]] = defaultdict(list)
    for row in rows:
        by[row[0]].append(row)
    return tuple(
        JudgedSparsity(
            sparsity,
            median(row[1] for row in own),
            min(row[2] for row in own),
            max(row[3] for row in own),
        )
        for sparsity, own in sorted(by.items())
    )
