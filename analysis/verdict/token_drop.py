"""Token dropping, read back: fewer rows from a layer on, and shorter caches behind it."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.layer_shares import (
    LAYER_LINEARS,
    attends_to_less,
    counted_in_words,
    is_less,
    layer_shares,
    of_attention,
)
from prunescope.taxonomy.words import percent


def detect(e: Evidence) -> Detection | None:
    """From a layer on every linear sees fewer rows; in decode the later layers attend to fewer
    keys, and the run counted rows that were dropped in prefill."""
    layers = layer_shares(e)
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.whole]
    if late and early and max(early) < min(late) and len(late) + len(early) == len(layers):
        share = layers[late[-1]].left(*LAYER_LINEARS)[0]
        what = f"every GEMM sees {percent(share)} of the rows{counted_in_words(e, 'rows')}"
        line = f"from layer {min(late)} on {what}"
        return Detection([line], lambda p: float(p.key[0] in late))
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    full = [n for n in layers if n not in shorter]
    behind = e.counted_layers("rows")
    if behind and not shorter and len(early) == len(layers):
        line = f"tokens were dropped in prefill before layer {min(behind)}; no GEMM shows it here"
        return Detection([line], of_attention(behind), 0.6)
    if not shorter or not full or max(full) > min(shorter) or len(early) < len(layers):
        return None
    if not is_less(e.counted("rows", any_phase=True)):
        return None
    line = f"from layer {min(shorter)} on the cache is shorter: tokens were dropped in prefill"
    return Detection([line], of_attention(shorter))
