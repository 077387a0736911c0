"""Text of a share, a range, a loss, a number, a time in ns, and a long name, for sentences.

In: a number or a name. Out: its text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

# From 10,000 % on a loss is written as a factor, because nobody counts so far in percent.
_AS_A_FACTOR = 100

# Characters of a library's message: the sentence that ends beyond them is the last one shown.
_ENOUGH = 400
MOST_NAME = 40  # characters of the display name of a method: a column of a table holds it
_WHOLE = 1e-6  # distance from a whole number that is rounding of a mean
_THREE_DIGITS = 100
# `re` compiles them at their first use, and keeps them.
_SENTENCE = r"(?<=[.!?])(?=\s)|\n"
_BETWEEN_WORDS = r"(?<=\w)(?=[^A-Za-z0-9])|(?<=\W)(?=\w)"


def percent(share: float, decimals: int = 0) -> str:
    """Format a share as `71 %`, as tables of a report do; the text around it names the base."""
    return f"{100 * share:.{decimals}f} %"


def whole_sentences(message: str) -> str:
    """Return a library's message in one line, cut between sentences if it is long.

    The last sentence is the first that ends beyond 400 characters.
    """
    text = message.strip()
    end = next((m.start() for m in re.finditer(_SENTENCE, text) if m.start() >= _ENOUGH), len(text))
    return " ".join(text[:end].split())


def plural(count: float) -> str:
    """Return the ending of a regular noun after `count`: nothing after one, else `s`."""
    return "" if count == 1 else "s"


def when(holds: bool, text: str) -> str:  # noqa: FBT001 - `when(is_slowed, " profiled")` reads aloud
    """Return `text` where a condition holds, else an empty text."""
    return text if holds else ""


def spread(low: int, high: int) -> str:
    """Format a range as `128–320`, or as `352` if both ends are equal."""
    return f"{low}" if low == high else f"{low}–{high}"


def numbers_in_words(numbers: Sequence[float], most: int = 8) -> str:
    """Format numbers as `3, 4, 4`, more than `most` as `28 (12 times)` or `3 to 8 (12 numbers)`."""
    if len(numbers) <= most:
        return ", ".join(map(_number, numbers))
    low, high = _number(min(numbers)), _number(max(numbers))
    if low == high:
        return f"{low} ({len(numbers)} times)"
    return f"{low} to {high} ({len(numbers)} numbers)"


def fell_to(before: float, after: Collection[float]) -> str:
    """Format a fall as `16 → 8`, or `16 → 4 to 8, by layer` if layers keep different numbers."""
    least, most = (_number(pick(after)) for pick in (min, max))
    text = f"{_number(before)} → {least}"
    return text if least == most else f"{text} to {most}, by layer"


def _number(value: float) -> str:
    """Format a number of heads, channels or keys: whole, or a mean with three digits at least."""
    if abs(value - round(value)) < _WHOLE:
        return f"{round(value)}"
    return f"{value:.3g}" if value < _THREE_DIGITS else f"{value:.0f}"


def factor(loss: float) -> str | None:
    """Format a loss too large for percent as a ratio, `17,400×` or `4.3e9×`; else return None.

    A loss here is the perplexity of the pruned model over that of the dense one, minus 1.
    """
    times = 1 + loss
    if not _AS_A_FACTOR <= loss < math.inf:
        return None
    if times < 1e6:
        return f"{float(f'{times:.3g}'):,.0f}×"
    digits, _, power = f"{times:.1e}".partition("e")
    return f"{digits}e{int(power)}×"


def significant(value: float) -> str:
    """Format three significant digits, without a power of ten: `0.012`, `290`, `1,490`."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def ms(ns: float) -> str:
    """Format ns as milliseconds with three decimals, or as microseconds below one.

    A minus is written as in tables.
    """
    text = f"{ns / 1e6:.3f} ms" if abs(ns) >= 1e6 else f"{ns / 1e3:.1f} µs"
    return text.replace("-", "−")


def shortened(name: str, longest: int = 80) -> str:
    """Cut a kernel's name between two words if it has more than `longest` characters."""
    if len(name) <= longest:
        return name
    cuts = [m.start() for m in re.finditer(_BETWEEN_WORDS, name[:longest])]
    cut = cuts[-1] if cuts and cuts[-1] > longest // 2 else longest - 1
    return f"{name[:cut].rstrip(' ,:<(_')}…"


def rough_time(seconds: float) -> str:
    """Return a time in hours, in minutes below one hour, or in seconds below two minutes."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.3g} h"


def time_left(seconds: float, share: float) -> str:
    """Return how long work takes that has run for `seconds`, or nothing before its first tenth.

    Args:
        seconds: The time since it began.
        share: The share of it that is done, 0..1.
    """
    return f"about {rough_time(seconds / share - seconds)} left" if 0.1 <= share < 1 else ""
