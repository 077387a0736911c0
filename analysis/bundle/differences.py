"""Whether two versions of a file agree: the same parts, and numbers within a rounding error.

In: texts or plain values. Out: the first difference in words; None if there is none. Both ways are
compared: what one side lacks is a difference whichever side it is.
"""

from __future__ import annotations

import math
from typing import Any

from prunescope.taxonomy.lazy_pattern import lazy_pattern

# Relative: the last bits of a sum may differ between machines, and a report has them all. Whole
# numbers are sums of whole numbers, and never differ.
_CLOSE = 1e-9
_NEARLY_0 = 1e-6  # ns: what is left of a difference of two sums
_DIGITS = lazy_pattern(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def difference(old: Any, new: Any, where: str = "report") -> str | None:
    """Return the first value, or missing part, in which two reports differ.

    Args:
        old: The value of the bundle.
        new: The value that was rebuilt.
        where: The path of the value, for the text.

    Returns:
        The difference; None if there is none.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        if missing := [key for key in new if key not in old]:
            return f"{where}: {missing[0]} is missing"
        if added := [key for key in old if key not in new]:
            return f"{where}: {str(added[0])[:60]} is no part of it"
        pairs = [(key, old[key], new[key]) for key in new]
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{where}: {len(old)} entries and {len(new)}"
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return None if _same_value(old, new) else f"{where}: {_shown(old)} and {_shown(new)}"
    differences = (difference(a, b, f"{where}.{key}") for key, a, b in pairs)
    return next(filter(None, differences), None)


def same_text(old: bytes, new: bytes) -> bool:
    """Return whether two texts agree, with decimal numbers within a rounding error."""
    a, b = (data.decode("utf-8", "replace") for data in (old, new))
    if a == b:
        return True
    if _DIGITS.sub("#", a) != _DIGITS.sub("#", b):
        return False
    pairs = zip(_DIGITS.findall(a), _DIGITS.findall(b), strict=True)
    return all(x == y or _close_decimals(x, y) for x, y in pairs)


def _same_value(old: Any, new: Any) -> bool:
    """Return whether two values that hold no others agree."""
    if isinstance(old, str) and isinstance(new, str):
        return same_text(old.encode("utf-8", "replace"), new.encode("utf-8", "replace"))
    if isinstance(old, float) or isinstance(new, float):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
        return numbers and _close(old, new)
    return type(old) is type(new) and bool(old == new)


def _close_decimals(a: str, b: str) -> bool:
    return not (a.lstrip("-").isdigit() or b.lstrip("-").isdigit()) and _close(float(a), float(b))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_NEARLY_0) and math.isfinite(a)


def _shown(value: Any) -> str:
    return str(value)[:60]
