"""Reports and other structs without secrets: `scrub` for values of any kind, in place.

In: structs, lists, tuples, dicts and strings. Out: the same values, each string and key scrubbed.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec

from prunescope.taxonomy.scrub import NUMBERS, free_key, scrub, value_under

T = TypeVar("T")


def scrubbed(value: T) -> T:
    """Scrub each string and key of a value: structs, lists and dicts in place."""
    clean: Any = value
    if isinstance(value, str):
        clean = scrub(value)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            msgspec.structs.force_setattr(value, name, scrubbed(getattr(value, name)))
    elif isinstance(value, list):
        value[:] = map(scrubbed, value)
    elif isinstance(value, tuple):
        clean = tuple(map(scrubbed, value))
    elif isinstance(value, dict):
        pairs = [
            (scrubbed(key), inner if type(inner) in NUMBERS else scrubbed(value_under(key, inner)))
            for key, inner in value.items()
        ]
        value.clear()
        for key, inner in pairs:
            value[free_key(key, value) if isinstance(key, str) else key] = inner
    return cast(T, clean)
