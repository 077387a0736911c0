"""Static K, low rank, read back: one GEMM became two."""

from __future__ import annotations

from collections import Counter

from prunescope.analysis.verdict.evidence import Evidence, Seen, most_common


def detect(e: Evidence) -> Seen | None:
    """GEMMs that became two, through a rank."""
    found = [p for p in e.pairs if p.axis == "rank"]
    if not found:
        return None
    roles = Counter(p.key[1] for p in found if p.key[3] == 0)
    line = f"{sum(roles.values())} GEMMs became two through a rank: {most_common(roles)}"
    return Seen([line], lambda p: float(p.axis == "rank"))
