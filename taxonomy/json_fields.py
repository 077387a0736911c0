"""Dataclasses from and to the plain values of a JSON object, standard library alone.

A block is a dataclass with a field `as_read`: the object as it was read, None for one that was made
here. It keeps the order of a file, its unknown keys and what it left out, so that a file that is
read and written again is the same.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_AS_READ = "as_read"
_READERS: dict[type[Any], dict[str, Callable[[Any], Any]]] = {}


def as_read() -> Any:
    """The field `as_read` of a block."""
    return dataclasses.field(default=None, repr=False, compare=False)


def left_out(default: Any = None) -> Any:
    """A field of a new block that is written only where it is not null, or what `default` makes."""
    made = default if default is not None else lambda: None
    return dataclasses.field(default_factory=made, metadata={"left_out": True})


def read(kind: type[T], plain: Mapping[str, Any]) -> T:
    """A block of `kind`, and the blocks inside it. Raises TypeError where a field is missing that
    has no default; types are for the caller to check beforehand."""
    readers = _readers(kind)
    known = {name: readers[name](value) for name, value in plain.items() if name in readers}
    if _AS_READ in kind.__annotations__:
        known[_AS_READ] = plain
    return kind(**known)


def plain(value: Any) -> Any:
    """What JSON has of a value: blocks become objects, at any depth."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: f for f in dataclasses.fields(value) if f.name != _AS_READ}
    was: Mapping[str, Any] | None = getattr(value, _AS_READ, None)
    written = {k: getattr(value, k) if k in fields else v for k, v in (was or {}).items()}
    for name, field in fields.items():
        own = getattr(value, name)
        optional = was is not None or field.metadata.get("left_out")
        if name not in written and not (optional and own == _default(field)):
            written[name] = own
    return {key: plain(inner) for key, inner in written.items()}


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _readers(kind: type[Any]) -> dict[str, Callable[[Any], Any]]:
    """How the value of each field is read; worked out once a class."""
    if kind not in _READERS:
        hints = get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind) if f.name != _AS_READ]
        _READERS[kind] = {name: _reader(hints[name]) or _as_it_is for name in names}
    return _READERS[kind]


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    """None for a value that holds no block."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return partial(read, hint)
    origin, inner = get_origin(hint), [_reader(arg) for arg in get_args(hint)]
    found = next((reader for reader in inner if reader is not None), None)
    if found is None:
        return None
    if origin in (Union, types.UnionType):
        return lambda value: None if value is None else found(value)
    if origin is list:
        return lambda value: [found(one) for one in value]
    assert origin is dict, hint
    return lambda value: {key: found(one) for key, one in value.items()}


def _as_it_is(value: Any) -> Any:
    return value
