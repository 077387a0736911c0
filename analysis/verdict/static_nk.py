"""Static NK, read back: heads and MLP channels fell, each in a producer and its consumer."""

from __future__ import annotations

from prunescope.analysis.verdict.dimensions import channels, fewer_units, heads
from prunescope.analysis.verdict.evidence import Detection, Evidence


def detect(e: Evidence) -> Detection | None:
    """Heads and channels; either alone is another family."""
    of_heads, of_mlp = heads(e), channels(e)
    return fewer_units(e, of_heads, of_mlp) if of_heads and of_mlp else None
