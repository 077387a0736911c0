"""Attention of some layers that reads fewer keys, and nothing else that moved, in a bare trace.

In: Evidence. Out: a verdict with its alternatives, or None: keys that left the cache and keys that
are skipped look alike where no run counts them.
"""

from __future__ import annotations

from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.evidence import Evidence, fell
from prunescope.analysis.verdict.layer_shares import layer_shares
from prunescope.taxonomy.families import families

_UNITS = {"keys", "blocks"}  # what attention alone reads fewer of
_CONFIDENCE = 0.5  # that it is one of two families: a shorter context looks alike


def fewer_keys(e: Evidence) -> FamilyVerdict | None:
    """The rest of the layers keeps its keys: those with a window of their own see no more of a
    long context than of a short one. Where all layers read fewer, the context is shorter for all
    that a trace says."""
    moved = [p for p in e.pairs if p.axis != "none"]
    axis = {"qk": {"N"}, "pv": {"K"}}
    if not moved or any(fell(p).keys() != axis.get(p.key[2], {""}) for p in moved):
        return None
    layers = {p.key[0] for p in moved}
    attending = {n for n, one in layer_shares(e).items() if one.attention is not None}
    if None in layers or not layers < attending:
        return None
    first = next((p for p in moved if p.key[2] == "qk"), None)
    if first is None or first.dense is None or first.pruned is None:
        return None
    before, after = (round(call.n or 0, 1) for call in (first.dense, first.pruned))
    line = (
        f"attention of {len(layers)} of {len(attending)} layers reads fewer keys "
        f"({before:g} → {after:g}), no linear moved: they left the cache or were "
        "skipped; a shorter context looks alike where the other layers have a window"
    )
    return FamilyVerdict(
        id="unknown",
        confidence=_CONFIDENCE,
        evidence=[line],
        alternatives=[one.id for one in families() if _UNITS & {*one.cuts}],
    )
