"""Static NK, MLP, read back: fewer channels in the MLP, as many heads in attention."""

from __future__ import annotations

from prunescope.analysis.verdict.dimensions import channels, fewer_units, heads
from prunescope.analysis.verdict.evidence import Detection, Evidence


def detect(e: Evidence) -> Detection | None:
    """Channels alone."""
    of_mlp = channels(e)
    return fewer_units(e, of_mlp) if of_mlp and not heads(e) else None
