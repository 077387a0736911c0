"""Whether two versions of a file agree, with numbers within a rounding error.

In: texts or plain values. Out: the first difference in words; None if there is none.
"""

from __future__ import annotations

import math
import re
from typing import Any

_CLOSE = 1e-6  # relative: the last digits of a sum may differ between machines
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def difference(old: Any, new: Any, skipped: frozenset[str], where: str = "report") -> str | None:
    """Return the first value, or missing part, in which two reports differ.

    Args:
        old: The value of the bundle.
        new: The value that was rebuilt.
        skipped: Names of parts that are not compared.
        where: The path of the value, for the text.

    Returns:
        The difference; None if there is none.
    """
    if isinstance(old, str) and isinstance(new, str):
        same = same_text(old.encode("utf-8", "replace"), new.encode("utf-8", "replace"))
        return None if same else f"{where}: {old[:60]} and {new[:60]}"
    if isinstance(old, bool) or isinstance(new, bool) or old is None or isinstance(old, str):
        return None if old == new else f"{where}: {old} and {new}"
    if isinstance(old, int | float):
        same = isinstance(new, int | float) and _close(float(old), float(new))
        return None if same else f"{where}: {old} and {new}"
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return f"{where}: lists of other lengths"
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    elif isinstance(new, dict) and not old.keys() - new.keys():
        pairs = [(key, old[key], new[key]) for key in old if key not in skipped]
    else:
        return f"{where}: parts are missing"
    differences = (difference(a, b, skipped, f"{where}.{key}") for key, a, b in pairs)
    return next(filter(None, differences), None)


def same_text(old: bytes, new: bytes) -> bool:
    """Return whether two texts agree, with numbers within a rounding error."""
    a, b = (data.decode("utf-8", "replace") for data in (old, new))
    if a == b:
        return True
    if _DIGITS.sub("#", a) != _DIGITS.sub("#", b):
        return False
    pairs = zip(_DIGITS.findall(a), _DIGITS.findall(b), strict=True)
    return all(_close(float(x), float(y)) for x, y in pairs)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-6)
