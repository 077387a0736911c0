"""What contradicts itself in a file that is read back.

In: the struct of a file. Out: what cannot be true, each with its place. An interval has its low end
first and holds its value; more is known by the structs themselves, in a method `contradictions`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

_INTERVAL = "ci95"
_VALUES = ("median", "ns")  # what the interval `ci95` of a struct is of
# Relative: a file may have been written by a machine that rounds the last bits otherwise.
CLOSE, _NEARLY_0 = 1e-6, 1e-6


@runtime_checkable
class SelfChecking(Protocol):
    """A struct that knows how its fields follow from one another."""

    def contradictions(self) -> Iterator[str]:
        """Yield what cannot be true of the fields, in words."""


def contradictions(value: Any, place: str = "") -> Iterator[str]:
    """Yield what cannot be true of a value of a file, at any depth, as `place: what`."""
    if isinstance(value, msgspec.Struct):
        what = [*_wrong_intervals(value)]
        if isinstance(value, SelfChecking):
            what += value.contradictions()
        yield from (f"{place}: {text}" if place else text for text in what)
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        inner: Any = ((key, getattr(value, name)) for name, key in names)
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        return
    for key, child in inner:
        if isinstance(child, msgspec.Struct | dict | list | tuple):
            yield from contradictions(child, f"{place}.{str(key)[:40]}" if place else str(key)[:40])


def differs(stated: float | None, computed: float | None) -> bool:
    """Return whether a number is not the one that other fields give; unknown ones never differ."""
    if stated is None or computed is None:
        return False
    return not math.isclose(stated, computed, rel_tol=CLOSE, abs_tol=_NEARLY_0)


def outside(value: float, ends: Sequence[float], name: str = "range") -> Iterator[str]:
    """Yield that an interval is not in order, or does not hold its value."""
    low, high = ends
    slack = _NEARLY_0 + (CLOSE * max(abs(low), abs(high)) if math.isfinite(low + high) else 0)
    if not low <= high:
        yield f"{name} is not in order: {list(ends)}"
    elif not low - slack <= value <= high + slack:
        yield f"{value:.6g} is outside of its own {name} {list(ends)}"


def _wrong_intervals(struct: msgspec.Struct) -> Iterator[str]:
    """Yield the intervals of a struct that are not in order, or do not hold their value."""
    for name in struct.__struct_fields__:
        ends = getattr(struct, name)
        if not name.endswith(_INTERVAL) or not isinstance(ends, list):
            continue
        if any(isinstance(end, list) for end in ends) or all(e is None for e in ends):
            continue  # the intervals of several values
        if len(ends) != 2:
            yield f"{name} is no pair of numbers"
            continue
        low, high = (
            -math.inf if ends[0] is None else ends[0],
            math.inf if ends[1] is None else ends[1],
        )
        stem = name.removesuffix(_INTERVAL).rstrip("_")
        values = (getattr(struct, of, None) for of in ([stem] if stem else _VALUES))
        value = next((v for v in values if isinstance(v, int | float)), None)
        yield from outside(low if value is None else value, (low, high), name)
