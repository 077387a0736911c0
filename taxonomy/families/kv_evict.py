"""Eviction of cached keys: attention in decode sees a shorter cache."""

from __future__ import annotations

from dataclasses import replace

from prunescope.taxonomy.applies import no_keys, to_keys
from prunescope.taxonomy.family import FULL_HEADS, Family, FamilyPoint, Knob, pattern, recorded
from prunescope.taxonomy.keep import kept_count, spared_share
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

OBSERVED = 32  # last queries of a prompt whose attention ranks its keys (SnapKV's window)


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return a dense prefill, or a decode that reads max(1, int(L·p)) of the L keys (p = 1 − s).

    It reads fewer keys in layers that attend to all of them; if some heads keep every key, the mean
    over the heads counts. Ranking the keys needs attention scores of its own: once for the end of a
    prompt, or for all queries in every forward. They are added work, which counts in the expected
    time and in no bound: a bound counts what a pruning removes, and prefill loses nothing.
    """
    sparsity = spared_share(point.sparsity, float(point.knobs.get("full_heads", 0.0)))
    keep = str(point.knobs["keep"]) if sparsity else ""
    dense = dense_plan(shape, work)
    if work.prefill:
        ranking = {"attention": min(OBSERVED, work.keys), "accumulated": work.keys}
        return [replace(dense, ranking=ranking.get(keep, 0))]
    held = kept_count(work.keys, sparsity)
    return [replace(dense, held=held, ranking=int(keep == "accumulated"))]


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
    unrecorded=recorded,
    methods=("H2O", "SnapKV", "StreamingLLM", "sliding window"),
    plans=plans,
    extension=True,
    knobs={
        "keep": Knob(
            "attention",
            "which keys stay: those that the end of the prompt attends to most, chosen once; those "
            "that all queries so far attended to most, chosen in each step (H2O); the latest; the "
            "first four and the latest (StreamingLLM)",
            ("attention", "accumulated", "recent", "sinks"),
        ),
        "full_heads": FULL_HEADS,
    },
    adds=("routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
