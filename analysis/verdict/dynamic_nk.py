"""Dynamic NK, read back: attention does less work, the linears all of theirs."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.layer_shares import (
    attends_to_less,
    counted_in_words,
    layer_shares,
    of_attention,
)
from prunescope.taxonomy.words import percent


def detect(e: Evidence) -> Detection | None:
    """Attention does less work while the linears do all of theirs: blocks of keys were skipped."""
    layers = layer_shares(e)
    attending = {n: x for n, x in layers.items() if x.attention is not None}
    less = [n for n, x in attending.items() if attends_to_less(x)]
    if not less or not all(x.whole for x in layers.values()) or e.counted("keys"):
        return None
    blocks = e.counted("blocks")
    gathers = e.added(role="attention", cls="gather_scatter")
    prompt = max(layer.queries for layer in attending.values()) > 1
    # Layers with a window of their own stay as they are.
    if (len(less) < len(attending) and not blocks) or not (prompt or blocks or gathers):
        return None
    share = sum(x.attention or 0.0 for x in attending.values()) / len(attending)
    line = (
        f"attention of {len(less)} layers does {percent(share)} of the dense products, the linears "
        f"all of theirs; {gathers} gathers of keys or values were added"
        f"{counted_in_words(e, 'blocks')}"
    )
    confidence = 1.0 if blocks or gathers else 0.6
    return Detection([line], of_attention(less), confidence, ("static-nk-heads",))
