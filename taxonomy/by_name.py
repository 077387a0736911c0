"""Dicts whose KeyError says which names are near: in, plain values or structs; out, the same."""

from __future__ import annotations

from typing import Any, Self

import msgspec

from prunescope.taxonomy.errors import nearest

_SINGULAR = {"phases": "phase", "reports": "run"}  # what a name of them names


class ByName(dict[str, Any]):
    """A dict whose KeyError for a name that it lacks gives the nearest ones. `what`: what its names
    name, such as "phase"."""

    what = "entry"

    @classmethod
    def of(cls, values: dict[str, Any], what: str) -> Self:
        """The same entries."""
        entries = cls(values)
        entries.what = what
        return entries

    def __missing__(self, name: object) -> Any:
        known = nearest(str(name)[:99], map(str, self)) or "it is empty"
        raise KeyError(f"no {self.what} is called {name!r}; nearest: {known}")


def by_name(value: Any, field: str) -> Any:
    """`value`, of the field `field`, with every dict in it as ByName. Fields of structs are set in
    place, those of frozen ones stay."""
    if isinstance(value, dict):
        entries = {name: by_name(one, str(name)) for name, one in value.items()}
        return ByName.of(entries, _SINGULAR.get(field, f"entry of {field}"))
    if isinstance(value, list):
        has_names = value and isinstance(value[0], dict | list | msgspec.Struct)
        return [by_name(one, field) for one in value] if has_names else value
    if isinstance(value, msgspec.Struct) and not value.__struct_config__.frozen:
        for name in value.__struct_fields__:
            old = getattr(value, name)
            if isinstance(old, dict | list | msgspec.Struct):
                setattr(value, name, by_name(old, name))
    return value
