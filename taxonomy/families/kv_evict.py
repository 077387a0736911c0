"""Eviction of cached keys: attention in decode sees a shorter cache."""

from __future__ import annotations

from dataclasses import replace

from prunescope.taxonomy.applies import no_keys, to_keys
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Prefill as dense, on the whole prompt; decode on max(1, int(L·p)) keys in the layers that see
    them all."""
    dense = dense_plan(shape, work)
    if work.prefill:
        return [dense]
    return [replace(dense, held=kept_count(work.keys, point.sparsity))]


FAMILY = Family(
    id="kv-evict",
    title="KV eviction",
    dynamics="dynamic",
    axes=pattern("- N K - - -"),
    unit="cached keys and values",
    cuts=("keys",),
    applies=to_keys,
    not_implemented=no_keys,
    scorer="estimator",
    scored_in="decode",
    methods=("H2O", "SnapKV", "sliding window"),
    plans=plans,
    extension=True,
    knobs={
        "keep": Knob(
            "attention",
            "which keys stay: the most attended, or the latest",
            ("attention", "recent"),
        )
    },
    adds=("routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
