"""Dynamic width: each token uses a part of the MLP's channels, chosen at run time."""

from __future__ import annotations

from dataclasses import replace

from prunescope.taxonomy.applies import NO, Applies, to_mlp
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.families.static_nk import with_channels
from prunescope.taxonomy.family import Family, FamilyPoint, pattern
from prunescope.taxonomy.plan import Piece, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """f' = up16(int(f·p)) channels a token. A channel is read where any of T tokens uses it:
    with probability 1 − (1 − f'/f)^T."""
    narrow = with_channels(shape, point)
    dense = {shape.intermediate, shape.expert_intermediate, shape.shared_intermediate} - {0}
    kept = {narrow.intermediate, narrow.expert_intermediate, narrow.shared_intermediate} - {0}
    width, full = max(kept), max(dense)
    union = (1 - (1 - width / full) ** work.rows) * full / width

    def linear(role: str, n: int, k: int) -> tuple[Piece, ...]:
        mlp = role in ("gate", "up", "down", "experts")
        return (Piece(n, k, stored=union if mlp else 1),)

    return [replace(dense_plan(narrow, work), linear=linear)]


def applies(traits: Traits) -> Applies:
    """To an MLP that is no set of experts."""
    if traits.shape and traits.shape.experts:
        return Applies(NO, "its experts are chosen by a router of its own")
    return to_mlp(traits)


FAMILY = Family(
    id="dynamic-width",
    title="Dynamic width",
    dynamics="dynamic",
    axes=pattern("- - - - N K"),
    unit="MLP channels, per token",
    cuts=("channels",),
    applies=applies,
    scorer="router",
    methods=("WIDE",),
    plans=plans,
    extension=True,
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
)
