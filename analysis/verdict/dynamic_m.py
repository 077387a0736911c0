"""Dynamic M, read back: some GEMMs see fewer rows, k and v see all."""

from __future__ import annotations

from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.layer_shares import (
    EVERY,
    SAME,
    counted_in_words,
    is_less,
    is_one,
    is_routed,
    layer_shares,
)
from prunescope.taxonomy.roles import MLP_ROLES
from prunescope.taxonomy.words import percent

_QUERY = ("q", "q_a", "q_b", "o")


def detect(e: Evidence) -> Detection | None:
    """Fewer rows of q, o or the MLP, while k and v see every row."""
    layers = layer_shares(e)
    kept = [x for layer in layers.values() for x in layer.left(*EVERY)]
    if not kept or not all(map(is_one, kept)) or any(x.reshaped for x in layers.values()):
        return None
    attention = [n for n, x in layers.items() if min(x.left(*_QUERY), default=1.0) < 1 - SAME]
    mlp = [n for n, x in layers.items() if min(x.left(*MLP_ROLES), default=1.0) < 1 - SAME]
    skipped = _without_experts(e)
    if not attention and not ((mlp or skipped) and (is_routed(e) or is_less(e.counted("rows")))):
        return None
    shares = [x for n in attention for x in layers[n].left(*_QUERY)]
    shares += [x for n in mlp for x in layers[n].left(*MLP_ROLES)]
    shares += skipped.values()
    mlp = sorted({*mlp, *skipped})
    line = (
        f"q and o of {len(attention)} layers and the MLP of {len(mlp)} see fewer rows, "
        f"{percent(sum(shares) / len(shares))} of theirs; k and v see all"
        f"{counted_in_words(e, 'rows')}"
    )
    touched = {*attention, *mlp}

    def touches(pair: Pair) -> float:
        return float(pair.key[0] in touched and pair.key[1] not in EVERY)

    confidence = 1.0 if is_routed(e) or is_less(e.counted("rows")) else 0.7
    explains = ("static-m", "static-nk-heads")  # gone sublayers and sequences of single steps
    return Detection([line], touches, confidence, explains)


def _without_experts(e: Evidence) -> dict[int, float]:
    """Layers whose experts run less often in a step, with the share of their products that is left.
    How many experts are hit is their router's choice as well: none at all is evidence, or fewer
    where the run counted the rows that were left out."""
    ran: dict[int, list[float]] = {}
    for pair in e.pairs:
        layer, role = pair.key[0], pair.key[1]
        if role != "experts" or layer is None or layer < 0:
            continue
        sums = ran.setdefault(layer, [0.0, 0.0])
        for i, call in enumerate((pair.dense, pair.pruned)):
            sums[i] += call.count if call is not None else 0.0
    counted = is_less(e.counted("rows"))
    return {n: p / d for n, (d, p) in ran.items() if p < d and (counted or not p)}
