"""Static NK, heads, read back: fewer heads in attention, as many channels in the MLP."""

from __future__ import annotations

from prunescope.analysis.verdict.dimensions import channels, fewer_units, heads
from prunescope.analysis.verdict.evidence import Detection, Evidence


def detect(e: Evidence) -> Detection | None:
    """Heads alone."""
    of_heads = heads(e)
    return fewer_units(e, of_heads) if of_heads and not channels(e) else None
