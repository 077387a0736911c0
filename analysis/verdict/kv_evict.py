"""KV eviction, read back: the run counted keys that left the cache."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.layer_shares import (
    attends_to_less,
    is_less,
    layer_shares,
    of_attention,
)
from prunescope.taxonomy.words import percent


def detect(e: Evidence) -> Detection | None:
    """No linear moved and the run counted keys that left the cache: attention of decode reads
    fewer. (Without the count it might as well be a shorter context.)"""
    layers = layer_shares(e)
    counted = e.counted("keys")
    if not layers or not all(x.whole for x in layers.values()) or not is_less(counted):
        return None
    assert counted is not None
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    held = e.layers_with_fewer("keys") or shorter
    of = f" of {len(held)} of {len(layers)} layers" if 0 < len(held) < len(layers) else ""
    lines = [
        f"the cache{of} holds {percent(counted[0] / counted[1])} of the keys seen; no linear moved"
    ]
    if shorter:
        lines.append(f"attention of {len(shorter)} of {len(layers)} layers reads fewer keys")
    return Detection(lines, of_attention(list(layers)))
