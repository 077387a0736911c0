"""Static K, 2:4, read back: sparse kernels, or two zeros in every four along K."""

from __future__ import annotations

from collections import Counter

from prunescope.analysis.verdict.evidence import Detection, Evidence, most_common
from prunescope.analysis.verdict.zeros import fresh_zeros, of_roles, two_of_four


def detect(e: Evidence) -> Detection | None:
    """Sparse kernels on the same logical shapes; or 2:4 zeros in dense tensors."""
    sparse = [p for p in e.pairs if p.axis == "2:4"]
    if sparse:
        roles = Counter(p.key[1] for p in sparse)
        return Detection(
            [f"{len(sparse)} GEMMs run as 2:4 sparse ones: {most_common(roles)}"],
            lambda p: float(p.axis == "2:4"),
        )
    fresh = fresh_zeros(e)
    half = [m for m in fresh if two_of_four(m)]
    if fresh and len(half) == len(fresh):
        line = (
            f"{len(half)} matrices hold 2 zeros in every 4 along K, and run on dense kernels: "
            "zeros are in dense tensors, nothing was removed"
        )
        return Detection([line], of_roles(half))
    return None
