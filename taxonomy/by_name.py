"""Dicts whose KeyError says which names are near.

In: plain values or structs. Out: the same values, with such dicts in them.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec

from prunescope.taxonomy.errors import nearest

_SINGULAR = {"phases": "phase", "reports": "run"}  # what a name of them names


class ByName(dict[str, Any]):
    """A dict whose KeyError for a name that it lacks gives the nearest ones.

    `noun`: what its names name, such as "phase".
    """

    noun = "entry"

    @classmethod
    def from_values(cls, values: dict[str, Any], noun: str) -> Self:
        """Make a dict with the same entries, whose names name a `noun`."""
        entries = cls(values)
        entries.noun = noun
        return entries

    def __missing__(self, name: object) -> Any:
        known = nearest(str(name)[:99], map(str, self)) or "it is empty"
        raise KeyError(f"no {self.noun} is called {name!r}; nearest: {known}")


def by_name(value: Any, field: str) -> Any:
    """Return the value of a field with every dict in it as ByName.

    Fields of structs are set in place; those of frozen structs stay.
    """
    if isinstance(value, dict):
        entries = {name: by_name(item, str(name)) for name, item in value.items()}
        return ByName.from_values(entries, _SINGULAR.get(field, f"entry of {field}"))
    if isinstance(value, list):
        has_names = value and isinstance(value[0], dict | list | msgspec.Struct)
        return [by_name(item, field) for item in value] if has_names else value
    if isinstance(value, msgspec.Struct) and not value.__struct_config__.frozen:
        for name in value.__struct_fields__:
            old = getattr(value, name)
            if isinstance(old, dict | list | msgspec.Struct):
                setattr(value, name, by_name(old, name))
    return value
