"""Student's t distribution: the quantile of 95 % intervals of the mean of few groups."""

from __future__ import annotations

NORMAL = 1.959963985  # 97.5th percentile
_EXACT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}


def t_quantile_975(degrees_of_freedom: int) -> float:
    """Return the 97.5th percentile, to 1e-3 (Abramowitz and Stegun 26.7.5)."""
    if degrees_of_freedom in _EXACT:
        return _EXACT[degrees_of_freedom]
    z, n = NORMAL, degrees_of_freedom
    terms = (
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
    )
    return z + sum(terms)
