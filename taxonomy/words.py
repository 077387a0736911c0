"""How sentences write a share: in, 0..1; out, text."""

from __future__ import annotations


def percent(share: float, decimals: int = 0) -> str:
    """`71 %`, as tables of a report write it; the text around it names the base."""
    return f"{100 * share:.{decimals}f} %"
