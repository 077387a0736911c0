"""Static NK, heads only: KV-head groups are removed, the MLP stays."""

from __future__ import annotations

from prunescope.taxonomy.applies import to_heads
from prunescope.taxonomy.families.static_nk import LATENTS, ROUNDING, with_heads
from prunescope.taxonomy.family import Family, FamilyPoint, pattern
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward with fewer KV heads and their query heads; the cache shrinks with them."""
    return [dense_plan(with_heads(shape, point), work)]


FAMILY = Family(
    id="static-nk-heads",
    title="Static NK, heads",
    dynamics="static",
    axes=pattern("N M M K - -"),
    unit="KV-head groups",
    cuts=("heads",),
    applies=to_heads,
    leaves=LATENTS,
    methods=("LLM-Pruner", "FLAP", "head pruning"),
    plans=plans,
    extension=True,
    knobs={"rounding": ROUNDING},
    calibration="text",
)
