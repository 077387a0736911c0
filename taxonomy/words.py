"""Text of a share, a range, a loss, a number, a time in ns, and a long name, for sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

# From 10,000 % on nobody counts in percent.
_AS_A_FACTOR = 100

# Characters of a library's message: the sentence that ends beyond them is the last one shown.
_ENOUGH = 400
_WHOLE = 1e-6  # distance from a whole number that is rounding of a mean
_THREE_DIGITS = 100
_SENTENCE = re.compile(r"(?<=[.!?])(?=\s)|\n")

_BETWEEN_WORDS = re.compile(r"(?<=\w)(?=[^A-Za-z0-9])|(?<=\W)(?=\w)")


def percent(share: float, decimals: int = 0) -> str:
    """`71 %`, as tables of a report write it; the text around it names the base."""
    return f"{100 * share:.{decimals}f} %"


def whole_sentences(message: str) -> str:
    """A library's message in one line: all of it, or the sentences up to the first that ends beyond
    400 characters. No sentence is cut."""
    text = message.strip()
    end = next((m.start() for m in _SENTENCE.finditer(text) if m.start() >= _ENOUGH), len(text))
    return " ".join(text[:end].split())


def plural(count: float) -> str:
    """Return the ending of a regular noun after `count`: nothing after one, else `s`."""
    return "" if count == 1 else "s"


def when(holds: bool, text: str) -> str:  # noqa: FBT001 - `when(is_slowed, " profiled")` reads aloud
    """Return `text` where a condition holds, else an empty text."""
    return text if holds else ""


def spread(low: int, high: int) -> str:
    """`128–320`, or `352` where both are equal."""
    return f"{low}" if low == high else f"{low}–{high}"


def fell_to(before: float, after: Collection[float]) -> str:
    """`16 → 8`, or `16 → 4 to 8, by layer` where layers keep different numbers."""
    least, most = (_number(pick(after)) for pick in (min, max))
    text = f"{_number(before)} → {least}"
    return text if least == most else f"{text} to {most}, by layer"


def _number(value: float) -> str:
    """A number of heads, channels or keys: whole, or a mean with three digits at least."""
    if abs(value - round(value)) < _WHOLE:
        return f"{round(value)}"
    return f"{value:.3g}" if value < _THREE_DIGITS else f"{value:.0f}"


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


def significant(value: float) -> str:
    """`0.012`, `290`, `1,490`: three significant digits, and no power of ten in a large number."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def ms(ns: float) -> str:
    """Milliseconds with three decimals, microseconds below one; a minus as tables write it."""
    text = f"{ns / 1e6:.3f} ms" if abs(ns) >= 1e6 else f"{ns / 1e3:.1f} µs"
    return text.replace("-", "−")


def shortened(name: str, longest: int = 80) -> str:
    """A kernel's name, cut between two words where it has more than `longest` characters."""
    if len(name) <= longest:
        return name
    cuts = [m.start() for m in _BETWEEN_WORDS.finditer(name[:longest])]
    cut = cuts[-1] if cuts and cuts[-1] > longest // 2 else longest - 1
    return f"{name[:cut].rstrip(' ,:<(_')}…"
