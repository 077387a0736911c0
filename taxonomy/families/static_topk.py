"""Static top-k: each token goes to fewer experts, all of which stay in memory (LExI and others)."""

from __future__ import annotations

from prunescope.taxonomy.applies import DENSE_MATRICES, NO, Applies, to_experts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family, FamilyPoint, pattern
from prunescope.taxonomy.keep import kept_routes
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def with_routes(shape: ModelShape, point: FamilyPoint) -> ModelShape:
    """Return the model in which a token goes to k' = max(1, round(k·p)) of its k experts.

    p = 1 − s. The router and the number of experts stay.
    """

    def fewer(layer: ModelShape) -> ModelShape:
        if not layer.experts.count:
            return layer
        return layer.change(experts_per_token=kept_routes(layer.experts.per_token, point.sparsity))

    return shape.map_layers(fewer)


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward in which the GEMMs of all experts have T·k' rows where they had T·k."""
    return [dense_plan(with_routes(shape, point), work)]


def applies(traits: Traits) -> Applies:
    """Answer for experts of which a token takes several."""
    if traits.shape and traits.shape.experts.count and traits.shape.experts.per_token < 2:
        return Applies(NO, "a token goes to one expert, and has to go to one at least")
    return to_experts(traits)


FAMILY = Family(
    id="static-topk",
    title="Static top-k",
    dynamics="static",
    axes=pattern("- - - - M M"),
    unit="experts a token goes to",
    cuts=("routes",),
    applies=applies,
    leaves=DENSE_MATRICES,
    methods=("LExI",),
    plans=plans,
    extension=True,
    keeps_weights=True,
)
