"""Static NK, MLP only: channels of gate, up and down are removed, attention stays."""

from __future__ import annotations

from prunescope.taxonomy.applies import to_mlp
from prunescope.taxonomy.families.static_nk import with_channels
from prunescope.taxonomy.family import ALIGNMENT, Family, FamilyPoint, pattern
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward with fewer channels in each MLP and each expert."""
    return [dense_plan(with_channels(shape, point), work)]


FAMILY = Family(
    id="static-nk-mlp",
    title="Static NK, MLP",
    dynamics="static",
    axes=pattern("- - - - N K"),
    unit="MLP channels",
    cuts=("channels",),
    applies=to_mlp,
    methods=("LLM-Pruner", "FLAP", "neuron pruning"),
    plans=plans,
    extension=True,
    knobs={"align": ALIGNMENT},
    calibration="text",
)
