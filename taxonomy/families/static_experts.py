"""Static experts: a layer has fewer experts, each as wide as before (REAP, M-SMoE and others).

Experts are dropped, or merged into those that stay. The router loses one output for each. A token
still goes to as many experts as before, so its FLOPs stay; each expert that is left gets more
tokens.
"""

from __future__ import annotations

from prunescope.taxonomy.applies import DENSE_MATRICES, NO, Applies, to_experts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import ALL_THAT_CAN_GO
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def with_experts(shape: ModelShape, point: FamilyPoint) -> ModelShape:
    """Return the model with E' = max(k, round(E·p)) of the E experts in each layer that has some.

    p = 1 − s, and k experts serve a token; equally many experts stay of each group of group-limited
    routing. The router has N = E'. k, the N and K of an expert, and the shared experts stay.
    """

    def fewer(layer: ModelShape) -> ModelShape:
        if not layer.experts.count:
            return layer
        return layer.change(experts=layer.experts.kept(point.sparsity))

    return shape.map_layers(fewer)


def applies(traits: Traits) -> Applies:
    """Answer for layers of more experts than their router needs.

    It needs the k that a token goes to, and in group-limited routing the share of them that each of
    its groups has to serve.
    """
    answer = to_experts(traits)
    shape = traits.shape
    if answer.answer == NO or shape is None:
        return answer
    parts = [part for part in shape.mlp_parts() if part.moe_layers]
    if any(part.experts.kept(ALL_THAT_CAN_GO) < part.experts.count for part in parts):
        return answer
    needs = f"a token goes to {shape.experts.per_token} of {shape.experts.count} experts"
    if shape.experts.groups > 1:
        size = shape.experts.count // shape.experts.groups
        needs += f", in {shape.experts.open_groups} of {shape.experts.groups} groups of {size}"
    return Applies(NO, f"{needs}, so that none can go")


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward with E' groups of M·E/E' rows each, if all experts get tokens.

    Dropped or merged, the same kernels run.
    """
    return [dense_plan(with_experts(shape, point), work)]


FAMILY = Family(
    id="static-experts",
    title="Static experts",
    dynamics="static",
    axes=pattern("- - - - G G"),
    unit="experts, dropped or merged",
    cuts=("experts",),
    applies=applies,
    leaves=DENSE_MATRICES,
    methods=("REAP", "Not All Experts are Equal", "EEP", "DiEP", "M-SMoE", "HC-SMoE"),
    plans=plans,
    extension=True,
    knobs={
        "how": Knob(
            "drop",
            "experts are dropped, or merged into those that stay by a weighted mean",
            ("drop", "merge"),
        )
    },
    calibration="text",
)
