"""Dynamic depth, read back: layers that run in some steps."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.layer_shares import (
    counted_in_words,
    is_less,
    is_routed,
    layer_shares,
)
from prunescope.taxonomy.words import percent


def detect(e: Evidence) -> Detection | None:
    """Layers that run in some steps, or are gone while routers stand before layers."""
    layers = layer_shares(e)
    skipped = [n for n, layer in layers.items() if layer.has_fewer_calls]
    if not skipped:
        return None
    sometimes = [n for n in skipped if max(layers[n].calls.values()) > 0]
    if not (sometimes or is_routed(e) or is_less(e.counted("layers"))):
        return None
    ran = sum(max(layer.calls.values()) for layer in layers.values()) / len(layers)
    line = (
        f"{len(skipped)} of {len(layers)} layers do not run in every step ({len(sometimes)} in "
        f"some), {percent(ran)} of the layers run in a step{counted_in_words(e, 'layers')}"
    )
    return Detection([line], lambda p: float(p.key[0] in skipped), explains=("static-m",))
