"""JSON that is written and read back: versions, limits, and blocks that survive a round trip.

A file is a msgspec struct whose field `schema` is a Literal of the versions that can be read;
absent means 1. A `Block` keeps the object that it was read from, so that a file that is read and
written again has the same keys in the same order, unknown ones included.
"""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from prunescope.taxonomy.contradictions import contradictions
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import MOST_NAME

T = TypeVar("T")
B = TypeVar("B", bound="Block")

# Limits of what a file may hold. Nothing of a real model or machine comes near them; loops and
# 64-bit sums stay within them.
MAX_COUNT = 1 << 52
MAX_LAYERS = 10_000
MAX_DEPTH = 64
Name = Annotated[str, Meta(max_length=256)]
Names = Annotated[list[Name], Meta(max_length=64)]
DisplayName = Annotated[str, Meta(min_length=1, max_length=MOST_NAME)]  # of a method, in tables
# The name of a file in the same folder, not a path that leads out of it.
FileName = Annotated[
    str,
    Meta(
        max_length=256,
        pattern=r"\A(?!\.{1,2}\Z)[^/\\\0]*\Z",
        description="the name of a file in the same folder",
    ),
]
Number = Annotated[float, Meta(gt=-1e30, lt=1e30)]
Numbers = dict[str, Number]
Share = Annotated[float, Meta(ge=0, le=1)]
Interval = Annotated[list[Number], Meta(min_length=2, max_length=2)]  # low and high
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Counts = Annotated[list[Count], Meta(max_length=1 << 20)]
Size = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Layer = Annotated[int, Meta(ge=0, le=MAX_LAYERS)]
Layers = Annotated[list[Layer], Meta(max_length=MAX_LAYERS)]

_OMIT = Meta(extra={"omit_default": True})
# A field that a new block writes only where it differs from its default.
OmitDefault = Annotated[T, _OMIT]


class Block(msgspec.Struct, kw_only=True, dict=True):
    """An object of a file. `plain` writes it as it was read, with the fields that have changed."""

    @property
    def as_read(self) -> Mapping[str, Any] | None:
        """The object that the block was read from; None for a block that was made here."""
        return self.__dict__.get("as_read")

    @classmethod
    def upgraded(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the object of a file with the keys of today; older versions wrote other ones."""
        return plain


class KeyTwiceError(ValueError):
    """A JSON text in which a key is twice in one object."""


class UnknownVersion(PrunescopeError):
    """A file of a version that this prunescope does not read."""


def decode(data: str | bytes, kind: type[T], *, where: str, hint: str) -> T:
    """Decode a file of a struct with a field `schema`.

    Args:
        data: The content of the file.
        kind: The struct; its `schema` is a Literal of the versions that can be read.
        where: The name of the file in messages.
        hint: What the user can do about a bad file.

    Raises:
        PrunescopeError: The file is not JSON, has a key twice in one object, is of a version that
            `kind` does not know, is wrong in a field, or contradicts itself.
    """
    try:
        return _decode(data, kind, where=where, hint=hint)
    except KeyTwiceError as error:
        raise PrunescopeError(f"{where} {error}", hint=hint) from None


def _decode(data: str | bytes, kind: type[T], *, where: str, hint: str) -> T:
    try:
        plain = msgspec.json.decode(data)
        # msgspec keeps the last of two equal keys. Numbers as floats: their digits have no limit.
        json.loads(data, object_pairs_hook=unique_keys, parse_int=float)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PrunescopeError(f"{where} is not JSON ({error})", hint=hint) from None
    if not isinstance(plain, dict):
        raise PrunescopeError(f"{where} is not a JSON object", hint=hint)
    _check_version(plain, kind, where=where, hint=hint)
    _check_depth(plain, where=where, hint=hint)  # what upgrades a file goes through all of it
    if issubclass(kind, Block):
        plain = kind.upgraded(plain)
    value = read(kind, plain, where=where, hint=hint)
    if wrong := next(contradictions(value), None):
        raise PrunescopeError(f"{where} contradicts itself: {wrong}", hint=hint)
    return value


def load_object(data: str | bytes, *, where: str, hint: str) -> dict[str, Any]:
    """Return the JSON object of a file that another program wrote, such as a model's config.json.

    Args:
        data: The content of the file.
        where: The name of the file in messages.
        hint: What the user can do about a bad file.

    Raises:
        PrunescopeError: The file is not JSON, is not an object, or has a key twice in one object.
    """
    try:
        value = json.loads(data, object_pairs_hook=unique_keys)
    except KeyTwiceError as error:
        raise PrunescopeError(f"{where} {error}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise PrunescopeError(f"{where} is not JSON ({str(error)[:80]})", hint=hint) from None
    if not isinstance(value, dict):
        raise PrunescopeError(f"{where} is not a JSON object", hint=hint)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON text, of which `json.loads` gives keys and values.

    Two readers may take different ones of two equal keys, so that neither is the right one.

    Raises:
        KeyTwiceError: A key is there twice; the message names the first one.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        twice = next(key for key, times in counted.items() if times > 1)
        raise KeyTwiceError(f"has the key {twice[:40]!r} twice in one object")
    return values


def decode_file(path: Path, kind: type[T], *, where: str, hint: str) -> T | None:
    """Decode a file as `decode` does; return None if there is no such file.

    A folder, a pipe or a device is refused: reading a pipe would wait without end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PrunescopeError(f"{where} is not a regular file", hint=hint)
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode(data, kind, where=where, hint=hint)


def _check_version(plain: Mapping[str, Any], kind: Any, *, where: str, hint: str) -> None:
    """Raise UnknownVersion if `schema` of a file is not one that `kind` knows; absent means 1."""
    known = get_args(_without_meta(_hints(kind)["schema"]))
    version = plain.get("schema", 1)
    if version in known and not isinstance(version, bool):
        return
    if isinstance(version, int) and version > max(known):
        hint = f"written by a newer prunescope: update prunescope, or {hint}"
    raise UnknownVersion(
        f"{where} has schema {str(version)[:40]}; this prunescope reads schema "
        f"{' or '.join(map(str, known))}",
        hint=hint,
    )


def read(kind: type[T], plain: Mapping[str, Any], *, where: str = "", hint: str = "") -> T:
    """Convert an object to a struct of `kind` and the blocks inside it.

    Raises:
        PrunescopeError: A field is wrong; the message names the first one, as
            `phases.prefill.batch`.
    """
    name = where or f"the record {kind.__name__}"
    _check_depth(plain, where=name, hint=hint)
    try:
        value = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        place, reason = _explained(str(error), plain, kind)
        wrong = f"{place}: {reason}" if place else reason
        raise PrunescopeError(f"{name}: {wrong}", hint=hint) from None
    _keep_as_read(value, plain)
    return value


def plain(value: Any) -> Any:
    """Return the JSON value of anything: blocks become objects, at any depth."""
    if isinstance(value, Block):
        return _plain_block(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def changed(block: B, **values: Any) -> B:
    """Copy a block with other values, written like the block that it copies."""
    copy = msgspec.structs.replace(block, **values)
    copy.__dict__.update(block.__dict__)
    return copy


def _plain_block(block: Block) -> dict[str, Any]:
    """Write a block as it was read, with its changed fields, and add the new ones."""
    fields, was = _fields(type(block)), block.as_read
    written: dict[str, Any] = {}
    for name, old in (was or {}).items():
        value = getattr(block, name) if name in fields else old
        # An equal value is written as it was read: a whole number stays one in a field of floats.
        written[name] = plain(old if value == old else value)
    for name, (default, may_omit) in fields.items():
        value = getattr(block, name)
        if name not in written and not ((may_omit or was is not None) and value == default):
            written[name] = plain(value)
    return written


@cache
def _fields(kind: type[Block]) -> dict[str, tuple[Any, bool]]:
    """Return the default of each field (UNSET: none), and whether a new block omits it."""
    return {
        field.name: (
            field.default
            if field.default_factory is msgspec.NODEFAULT
            else field.default_factory(),
            _OMIT in getattr(_hints(kind)[field.name], "__metadata__", ()),
        )
        for field in msgspec.structs.fields(kind)
    }


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _holders(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields that hold blocks."""
    return tuple(f.encode_name for f in msgspec.structs.fields(kind) if _holds_blocks(f.type))


def _holds_blocks(hint: Any) -> bool:
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, Block)
    return any(map(_holds_blocks, get_args(hint)))


def _keep_as_read(value: Any, plain: Any) -> None:
    """Give each block inside a value the object that it was read from."""
    if isinstance(value, msgspec.Struct):
        if isinstance(value, Block):
            value.__dict__["as_read"] = plain
        for name in _holders(type(value)):
            if name in plain:
                _keep_as_read(getattr(value, name), plain[name])
    elif isinstance(value, dict):
        for key, inner in value.items():
            _keep_as_read(inner, plain[key])
    elif isinstance(value, list):
        for inner, old in zip(value, plain, strict=True):
            _keep_as_read(inner, old)


def _explained(error: str, plain: Any, kind: Any) -> tuple[str, str]:
    """Return the place of the wrong field and what is wrong with it, from a ValidationError's text.

    Its path writes each key of a dict as `[...]`: the first key whose value is wrong is meant.
    """
    reason, *paths = re.split(r" - at (?:`key` in )?`\$([^`]*)`", error)
    names: list[str] = []
    for attribute, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", "".join(reversed(paths))):
        kind = _without_meta(kind)
        if attribute:
            name: Any = attribute
            kind = _hints(kind).get(name) if isinstance(kind, type) else None
        else:
            kind = (get_args(kind) or (None,))[-1]
            name = (
                next(k for k, v in plain.items() if _is_wrong(v, kind))
                if index == "..."
                else int(index)
            )
        plain = plain[name]
        names.append(str(name)[:40])
    if "`key` in" in error:
        kind = (get_args(_without_meta(kind)) or (None,))[0]
    if "matching regex" in reason:
        told = (m.description for m in get_args(kind) if isinstance(m, Meta) and m.description)
        reason = f"expected {next(told, 'another text')}"
    return ".".join(names), reason[:1].lower() + reason[1:]


def _without_meta(hint: Any) -> Any:
    """Return the type in Annotated, or in `type | None`."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not NoneType)
    return hint


def _is_wrong(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return True
    return False


def _check_depth(plain: Mapping[str, Any], *, where: str, hint: str) -> None:
    for name, value in plain.items():
        if _is_too_deep(value):
            place = name[:40].encode("ascii", "replace").decode()
            raise PrunescopeError(f"{where}: {place} is nested too deep", hint=hint)


def _is_too_deep(value: Any) -> bool:
    """Return whether lists and objects are nested deeper than MAX_DEPTH."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
