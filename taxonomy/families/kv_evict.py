"""Eviction of cached keys: attention in decode sees a shorter cache."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from prunescope.taxonomy.applies import no_keys, to_keys
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import (
    FULL_HEADS,
    Family,
    FamilyPoint,
    Knob,
    Value,
    pattern,
    recorded,
)
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
    full = float(point.knobs.get("full_heads", 0.0))
    sparsity = point.sparsity
    if (kept := _budget(point.knobs)) is not None:
        sparsity = max(0.0, 1 - kept / work.keys)
    sparsity = spared_share(sparsity, full)
    keep = str(point.knobs["keep"]) if sparsity else ""
    dense = dense_plan(shape, work)
    if work.prefill:
        queries = {"attention": min(OBSERVED, work.keys), "accumulated": work.keys}
        return [replace(dense, ranking=queries.get(keep, 0))]
    held = kept_count(work.keys, sparsity)
    every = int(point.knobs.get("every", 1))
    ranking = 1 if keep == "accumulated" and every == 1 else 0
    return [replace(dense, held=held, ranking=ranking, compacted=_compacted(point, sparsity))]


def _budget(knobs: Mapping[str, Value]) -> float | None:
    """Return the keys that a cache holds in the mean over its steps; None without a budget.

    Between two evictions it grows by a key a step, so that it holds half of them more (the buffer
    of R-KV, github.com/Zefan-Cai/R-KV).
    """
    budget, every = int(knobs.get("budget", 0)), int(knobs.get("every", 1))
    if budget < 0 or every < 1:
        raise PrunescopeError(
            f"budget={budget}, every={every}: no number of keys and steps",
            hint="for example --set budget=1024 --set every=128",
        )
    return budget + (every - 1) / 2 if budget else None


def _compacted(point: FamilyPoint, sparsity: float) -> float:
    """Return the share of the kept keys that a decode step moves to close the gaps of an eviction.

    A window slides, and moves none. Keys that are chosen in the middle are gathered once in `every`
    steps, where that is given: the published form of eviction while decoding.
    """
    chosen = str(point.knobs["keep"]) in ("attention", "accumulated")
    return 1 / int(point.knobs["every"]) if sparsity and chosen and "every" in point.knobs else 0.0


def implied_sparsity(_shape: ModelShape, knobs: Mapping[str, Value], tokens: int) -> float | None:
    """Return the share of `tokens` keys that a budget evicts; None without a budget."""
    kept = _budget(knobs)
    return None if kept is None else max(0.0, 1 - kept / tokens)


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
    decoder_alone=True,
    scored_in="decode",
    unrecorded=recorded,
    methods=("H2O", "SnapKV", "StreamingLLM", "sliding window"),
    plans=plans,
    implied_sparsity=implied_sparsity,
    extension=True,
    knobs={
        "keep": Knob(
            "attention",
            "which keys stay: those that the end of the prompt attends to most, chosen once; those "
            "that all queries so far attended to most, chosen in each step (H2O); the latest; the "
            "first four and the latest (StreamingLLM)",
            ("attention", "accumulated", "recent", "sinks"),
        ),
        "budget": Knob(
            0,
            "keys that stay, however long the text, in predict; 0: the share that the sparsity "
            "gives",
            predicted_only=True,
        ),
        "every": Knob(
            1,
            "decode steps between two evictions, in predict: a cache grows by a key a step in "
            "between, and each eviction gathers the keys that stay",
            predicted_only=True,
        ),
        "full_heads": FULL_HEADS,
    },
    adds=("routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
