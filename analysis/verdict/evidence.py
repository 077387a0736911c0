"""What the detectors of the verdict read, and their results.

In: the GEMM pairs, units and weight statistics of a phase. Out: Evidence; Detection and Reason.
Times in ns per step.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from msgspec import Struct

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.comparison.more_calls import MoreCalls
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.schema.pair_comparison import Difference
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.gathers import Gather
from prunescope.analysis.verdict.unread import Unread
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import Matrix, ModuleCounts, WeightStats


class Reason(Struct, frozen=True, kw_only=True):
    """A reason why a pair is no pruning, or a broken one.

    Attributes:
        kind: The kind of the difference between the runs, or of the first notice.
        notices: What a reader is told.
        confidence: The confidence of the verdict that rests on it.
    """

    kind: str
    notices: tuple[Notice, ...]
    confidence: float = 0.9


class Evidence(Struct, frozen=True):
    """What the detectors read.

    Attributes:
        pairs: The pairs of GEMMs.
        units: The units of both sides.
        stats_dense: The weight statistics of the dense run; None without a run.json.
        stats_pruned: Those of the pruned run.
        phase: The name of the phase in the weight statistics; None if unknown.
        differences: The settings that differ, other than the pruning.
        parameters: The parameters of the dense and of the pruned run.
        other_grids: The share of GEMM time in kernels or grids that the dense side lacks; None
            if no
            grid is known.
        shapes_ignored: The sides whose shapes the other one lacks.
        by_order: Whether the order of kernels alone gives the roles of a side.
        unread: The work without a model, of the dense and of the pruned side.
        ranks: The ranks that share out a step, dense and pruned; None if unknown.
        gathers: The gathers of the pruned side; None where no shapes are known.
        convolutions: The convolutions that are on both sides.
        more_calls: The pointwise ops that the pruned side calls more often.
        unpacked: The format that the pruned side alone copies whole weights to, and the one of
            fewer bits that they are stored in; None where it does not.
        activation: The reason that the activation functions differ; None if they do not, or are
            unknown.
    """

    pairs: list[Pair]
    units: Units
    stats_dense: WeightStats | None
    stats_pruned: WeightStats | None
    phase: str | None = None
    differences: tuple[Difference, ...] = ()
    parameters: tuple[int | None, int | None] = (None, None)
    other_grids: float | None = None
    shapes_ignored: frozenset[str] = frozenset()
    by_order: bool = False
    unread: tuple[Unread, Unread] = (Unread(), Unread())
    ranks: tuple[int | None, int | None] = (1, 1)
    gathers: tuple[Gather, ...] | None = None
    convolutions: tuple[Convolution, ...] = ()
    more_calls: tuple[MoreCalls, ...] = ()
    unpacked: tuple[str, str] | None = None
    activation: Reason | None = None

    def hidden(self) -> list[Notice]:
        """Return caveats of work without a model, where it is enough to hide a pruning."""
        sides = zip(("dense", "pruned"), self.unread, strict=True)
        return [unread.caveat(side) for side, unread in sides if unread.may_hide]

    def removed_and_kept_roles(self) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
        """Return the roles of the GEMMs of each dense layer that the pruned side lacks, and has."""
        removed: dict[int, set[str]] = defaultdict(set)
        kept: dict[int, set[str]] = defaultdict(set)
        for pair in self.pairs:
            layer, role = pair.key[0], pair.key[1]
            if layer is not None and layer >= 0:
                (removed if pair.pruned is None else kept)[layer].add(role)
        return removed, kept

    def times(self, touches: Touches) -> tuple[float, float]:
        """Return the time of the dense and of the pruned GEMMs that a family touches, ns.

        Each GEMM is weighted by how much of it is the family's. Two GEMMs through a rank share a
        dense one.
        """
        dense = {id(p.dense): p.dense.busy * touches(p) for p in self.pairs if p.dense is not None}
        pruned = sum(p.pruned.busy * touches(p) for p in self.pairs if p.pruned is not None)
        return sum(dense.values()), pruned

    def removed_weights(self) -> frozenset[tuple[int, str]]:
        """Return the matrices that the pruned run holds no more, as (layer, role).

        Layers are those of the dense model. The result is empty where one of the runs does not list
        its matrices.
        """
        before, after = self._stored()
        return frozenset(before.keys() - after.keys()) if before and after else frozenset()

    def smaller_weights(self) -> frozenset[tuple[int, str]]:
        """Return (layer, role) of the matrices that the pruned run holds with fewer numbers."""
        before, after = self._stored()
        return frozenset(at for at, size in after.items() if size < before.get(at, 0))

    def _stored(self) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], int]]:
        """Count the numbers in the matrices of both runs by (layer of the dense model, role).

        A run that holds as many layers as the dense one has them at the same places, whether they
        run or not.
        """
        before, after = _places(self.stats_dense), _places(self.stats_pruned)
        if len({layer for layer, _ in before}) > len({layer for layer, _ in after}):
            dense = self.units.alignment.dense_layer
            after = {(dense.get(i, -1 - i), role): size for (i, role), size in after.items()}
        return before, after

    def added_ns(self) -> float:
        """Return the time of the units that only the pruned side has, ns."""
        busy = self.units.pruned.busy.mean(axis=1)
        return float(busy[self.units.added].sum())

    def added(self, *, role: str | None = None, cls: str | None = None) -> int:
        """Count the units that only the pruned side has.

        Args:
            role: Counts those of one role alone; None counts all.
            cls: Counts those of one class alone; None counts all.
        """
        return sum(
            bool(is_added) and role in (None, key[1]) and cls in (None, key[2])
            for key, is_added in zip(self.units.keys, self.units.added, strict=True)
        )

    def counted(self, unit: str, *, any_phase: bool = False) -> tuple[int, int] | None:
        """Return how much of a unit the pruned run counted in this phase: active and total.

        None where it counted nothing.
        """
        done = [_done(row) for _, row in self._counts(unit, any_phase=any_phase)]
        active, total = sum(a for a, _ in done), sum(t for _, t in done)
        return (active, total) if total else None

    def layers_with_fewer_rows(self) -> list[int]:
        """Return the layers that ran fewer than all rows in some phase.

        It is empty where some modules were counted that are no whole layers.
        """
        done = [(locate(n), *_done(row)) for n, row in self._counts("rows", any_phase=True)]
        less = {place.layer for place, active, total in done if active < total}
        whole = all(place.scope == "layer" for place, _, _ in done)
        return sorted(layer for layer in less if layer is not None) if whole else []

    def layers_with_fewer_keys(self) -> list[int]:
        """Return the layers with a module that read fewer than all keys in some phase."""
        counts = self._counts("keys", any_phase=True)
        layers = {locate(n).layer for n, row in counts if row.active < row.total}
        return sorted(layer for layer in layers if layer is not None)

    def _counts(self, unit: str, *, any_phase: bool) -> Iterator[tuple[str, ModuleCounts]]:
        """Yield the modules that counted a unit, by name."""
        for phase, modules in self.stats_pruned.dynamic.items() if self.stats_pruned else ():
            if any_phase or self.phase in (None, phase):
                yield from ((name, row) for name, row in modules.items() if row.unit == unit)


Touches = Callable[[Pair], float]


class Detection(Struct, frozen=True):
    """A family that was seen, and where.

    Attributes:
        evidence: The lines of evidence.
        touches: How much of a pair is the family's, 0 to 1.
        confidence: The confidence in it, 0 to 1.
        explains: The families that the same traces would show if the method were a static one.
        proven: Whether the weights, the run's counts or sparse kernels show this family, so that no
            other explains it and it rests on no role.
        broken: The evidence that one side of a removed dimension did not follow the other.
    """

    evidence: list[str]
    touches: Touches
    confidence: float = 1.0
    explains: tuple[str, ...] = ()
    proven: bool = False
    broken: tuple[str, ...] = ()


class Verdict(Struct, frozen=True):
    """The family of a pair, and what was seen of each family in it."""

    family: FamilyVerdict
    seen: tuple[Detection, ...] = ()


def fell(pair: Pair) -> dict[str, float]:
    """Return the axes of a pair that are smaller than the dense ones.

    Each has its log(dense/pruned).
    """
    old, new = pair.gemms
    if old is None or new is None:
        return {}
    sizes = {
        "heads": (old.batch, new.batch),
        "M": (old.m, new.m),
        "N": (old.n, new.n),
        "K": (old.k, new.k),
    }
    return {axis: math.log(a / b) for axis, (a, b) in sizes.items() if 0 < b < a}


def matrices(stats: WeightStats | None) -> list[Matrix]:
    """Return the matrices that a run lists."""
    return [] if stats is None else stats.matrices


def stored_shapes(stats: WeightStats | None) -> Counter[tuple[str, ...]]:
    """Count the matrices of each role and shape that a run lists."""
    return Counter((str(m.role), str(m.shape)) for m in matrices(stats))


def _places(stats: WeightStats | None) -> dict[tuple[int, str], int]:
    """Count the numbers in the matrices of a run by (layer, role)."""
    sizes: Counter[tuple[int, str]] = Counter()
    for m in matrices(stats):
        if m.layer is not None and m.role is not None and m.shape is not None:
            sizes[m.layer, m.role] += math.prod(m.shape)
    return dict(sizes)


def _done(row: ModuleCounts) -> tuple[int, int]:
    """Return what a module counted over all steps: active and total."""
    return sum(row.active), sum(row.total)
