"""Dynamic NK: key/value blocks are skipped, chosen for each query block at run time."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.applies import YES, Applies, no_keys, to_keys
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import FULL_HEADS, Family, FamilyPoint, Knob, pattern, recorded
from prunescope.taxonomy.keep import spared_share
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Multiply attention FLOPs and, in decode, cache reads by p = 1 − s.

    s is the share of the blocks that are skipped; with `blocks=value` the factor is 1 − s/2,
    because QKᵀ stays whole. Heads that read every key count with s = 0.
    """
    s = spared_share(point.sparsity, float(point.knobs.get("full_heads", 0.0)))
    share = 1 - s / 2 if point.knobs["blocks"] == "value" else 1 - s
    return [replace(dense_plan(shape, work), scores=share, keys=share)]


def applies(traits: Traits) -> Applies:
    """Answer as other families of keys; blocks of latent attention stay in its cache."""
    answer = to_keys(traits)
    if answer.answer == YES and traits.shape and traits.shape.attention.kv_rank is not None:
        latent = "each latent is expanded; blocks are left out of the products alone"
        return Applies(YES, latent)
    return answer


FAMILY = Family(
    id="dynamic-nk",
    title="Dynamic NK",
    dynamics="dynamic",
    axes=pattern("- N K - - -"),
    unit="key/value blocks per query block",
    cuts=("blocks",),
    applies=applies,
    not_implemented=no_keys,
    scorer="estimator",
    unrecorded=recorded,
    methods=("SeerAttention", "BLASST"),
    plans=plans,
    knobs={
        "blocks": Knob(
            "key_value", "skip blocks of QKᵀ and PV, or of PV alone", ("key_value", "value")
        ),
        "block": Knob(
            0,
            "tokens in a block of queries or keys; 0: 64, or fewer in short prompts; 1: each query "
            "chooses its own blocks, which no later query influences",
        ),
        "backend": Knob(
            "torch",
            "ordinary torch ops, or (prompts on a GPU) compiled FlexAttention with a block mask",
            ("torch", "flex"),
        ),
        "full_heads": FULL_HEADS,
    },
    adds=("elementwise", "batched_gemm", "softmax", "routing"),
    keeps_weights=True,
    calibration="input",
)
