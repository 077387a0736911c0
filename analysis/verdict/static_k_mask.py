"""Static K, masked, read back: zeros in dense tensors without a pattern."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.verdict.zeros import fresh_zeros, of_roles, two_of_four
from prunescope.taxonomy.words import percent


def detect(e: Evidence) -> Detection | None:
    """Zeros in dense tensors without a pattern: no dimension moved, nothing was removed."""
    fresh = fresh_zeros(e)
    if not fresh or all(two_of_four(m) for m in fresh):
        return None
    share = sum(m.zeros or 0.0 for m in fresh) / len(fresh)
    line = (
        f"{percent(share, 1)} of the weights of {len(fresh)} matrices are zero in dense tensors; "
        "no dimension moved, nothing was removed"
    )
    return Detection([line], of_roles(fresh))
