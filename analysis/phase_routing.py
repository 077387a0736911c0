"""The spread of tokens over experts, from the counts of runs.

The runs of one or two sides and the name of a phase give the PhaseRouting of the schema; None where
the run counted no experts, which is so for a trace alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

from msgspec import Struct

from prunescope.analysis.schema.routing import LayerRouting, PhaseRouting
from prunescope.taxonomy.runs.run import Run


class _Spread(Struct, frozen=True, kw_only=True):
    """The spread of tokens over the experts of one layer.

    `counts` are tokens per expert; `distinct` is how many experts got a token per step.
    """

    counts: Sequence[int]
    distinct: float | None

    @property
    def fullest(self) -> float | None:
        """The largest count over the mean."""
        total = sum(self.counts)
        return max(self.counts) * len(self.counts) / total if total else None

    @property
    def entropy(self) -> float | None:
        """Σ −p·log2 p over log2 E; None for a single expert, for which it is not defined."""
        total = sum(self.counts)
        if not total or len(self.counts) < 2:
            return None
        shares = (count / total for count in self.counts if count)
        return sum(-share * log2(share) for share in shares) / log2(len(self.counts))


def routing_of(run: Run | None, dense: Run | None, phase: str) -> PhaseRouting | None:
    """Return the routing of a phase of `run`, and of its `dense` baseline where it has one.

    A pruned run without some layers of the dense one is compared by where its layers were.
    """
    own = _spreads(run, phase)
    if run is None or not own:
        return None
    before = _spreads(dense, phase)
    kept = run.layer_map if dense is not None else None
    layers = []
    for number, spread in own.items():
        was = kept[number] if kept is not None and number < len(kept) else number
        layers.append(_layer(was, spread, before.get(was)))
    return PhaseRouting(layers=layers)


def _layer(number: int, own: _Spread, dense: _Spread | None) -> LayerRouting:
    """Return one layer's routing next to that of the dense model."""
    return LayerRouting(
        layer=number,
        experts=len(own.counts),
        distinct=own.distinct,
        fullest=own.fullest,
        entropy=own.entropy,
        dense_experts=len(dense.counts) if dense else None,
        dense_distinct=dense.distinct if dense else None,
        dense_fullest=dense.fullest if dense else None,
        dense_entropy=dense.entropy if dense else None,
    )


def _spreads(run: Run | None, phase: str) -> dict[int, _Spread]:
    """Return the spreads by number of the layer, in order; a layer without experts is left out."""
    if run is None:
        return {}
    counts, distinct = run.routing.get(phase, {}), run.distinct_experts.get(phase, {})
    return {
        int(key): _Spread(counts=counts[key], distinct=distinct.get(key))
        for key in sorted(counts, key=int)
        if counts[key]
    }
