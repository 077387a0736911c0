"""Static vocabulary, read back: N of lm_head fell."""

from __future__ import annotations

from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, fell


@detector("static-vocab")
def static_vocab(e: Evidence) -> Detection | None:
    """lm_head is narrower."""
    found = [p for p in e.pairs if p.key[1] == "lm_head" and "N" in fell(p)]
    if not found:
        return None
    return Detection(["N of lm_head fell"], lambda p: float(p.key[1] == "lm_head"))
