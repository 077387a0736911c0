"""Static NK, cross-layer, read back: the residual stream itself is narrower."""

from __future__ import annotations

from prunescope.analysis.verdict.dimensions import (
    ENTERED,
    WRITERS,
    count,
    crosses,
    of_stream,
    stream_widths,
)
from prunescope.analysis.verdict.evidence import Detection, Evidence


def detect(e: Evidence) -> Detection | None:
    """The residual width itself fell: K of what reads the stream, and N of what writes to it."""
    if not crosses(e):
        return None
    readers = [p for p in e.pairs if p.key[1] in ENTERED and p.dense is not None]
    entered, left, stream = count(e, ENTERED, "K"), count(e, WRITERS, "N"), stream_widths(e)
    maps = sum(1 for p in e.pairs if p.axis == "added" and p.key[2] not in ("qk", "pv"))
    line = f"the residual width fell: K of {entered} and N of {left} GEMMs" + (
        f"; {maps} residual maps were added" if maps else ""
    )
    here = sum(1 for p in readers if p.pruned is not None) or 1
    confidence = 0.9 if entered / here > 0.5 else 0.5
    return Detection([line], lambda p: of_stream(p, stream), confidence)
