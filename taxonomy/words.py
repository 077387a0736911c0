"""How sentences write a share, and a loss of perplexity: in, 0..1 or above; out, text."""

from __future__ import annotations

import math

# From 10,000 % on nobody counts in percent.
_AS_A_FACTOR = 100


def percent(share: float, decimals: int = 0) -> str:
    """`71 %`, as tables of a report write it; the text around it names the base."""
    return f"{100 * share:.{decimals}f} %"


def factor(loss: float) -> str | None:
    """A loss (perplexity, pruned over dense − 1) too large for percent as a ratio, `17,400×` or
    `4.3e9×`; None for one that is not."""
    times = 1 + loss
    if not _AS_A_FACTOR <= loss < math.inf:
        return None
    if times < 1e6:
        return f"{float(f'{times:.3g}'):,.0f}×"
    digits, _, power = f"{times:.1e}".partition("e")
    return f"{digits}e{int(power)}×"
