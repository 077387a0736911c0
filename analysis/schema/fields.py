"""The meanings and units of the fields of a struct.

In: the struct. Out: a FieldInfo for each field. Meanings stand as `msgspec.Meta` at the fields,
once: the JSON Schema, the data dictionary of the written tables and the documentation take them
from there.
"""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from msgspec import Struct

_UNITS = {"ns": "ns", "bytes": "bytes", "flop": "FLOP"}  # by the last word of a field's name


def meaning(text: str, unit: str = "") -> msgspec.Meta:
    """Return the annotation of a field.

    Args:
        text: What the field means.
        unit: Its unit, if the last word of its name does not give it.
    """
    return msgspec.Meta(description=text, extra_json_schema={"unit": unit} if unit else None)


class FieldInfo(Struct, frozen=True):
    """A field as JSON and tables name it."""

    name: str
    unit: str
    text: str


def fields_of(kind: type[msgspec.Struct]) -> list[FieldInfo]:
    """Return the fields of a struct in order; the text of a field without a meaning is empty."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    return [_info(encoded, hints[name]) for name, encoded in names]


def _info(name: str, hint: Any) -> FieldInfo:
    meta = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)), None)
    extra = (meta.extra_json_schema if meta else None) or {}
    return FieldInfo(name, extra.get("unit") or unit_of(name), (meta and meta.description) or "")


def unit_of(name: str) -> str:
    """Return the unit of a field or column by the last word of its name; "" if it has none."""
    return _UNITS.get(name.rsplit("_", 1)[-1], "")
