"""The bytes of any value of a report: JSON for readers, MessagePack for a worker process."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from prunescope.taxonomy.lazy_pattern import lazy_pattern

# Control characters that terminals obey and that JSON does not escape itself.
OBEYED = lazy_pattern("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


T = TypeVar("T")


def json_bytes(value: Any) -> bytes:
    """Return indented UTF-8 JSON in which no character moves the cursor or turns text around."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    return OBEYED.sub(lambda m: f"\\u{ord(m[0]):04x}", text).encode()


def packed(value: Any) -> bytes:
    """Return a value as MessagePack, for a worker process."""
    return msgspec.msgpack.encode(value)


def unpacked(data: bytes, kind: type[T]) -> T:
    """Return the value that `packed` packed.

    `json_bytes` of both values gives the same bytes.
    """
    typed: T = _restore_integers(
        msgspec.msgpack.decode(data, type=kind), msgspec.msgpack.decode(data)
    )
    return typed


def _restore_integers(typed: Any, sent: Any) -> Any:
    """Turn floats back into integers where the sender wrote integers.

    msgspec decodes every number of a float field as a float, and `1.0` and `1` are different bytes
    in JSON. Structs, lists and dicts are changed in place.
    """
    if type(typed) is float and type(sent) is int:
        return sent
    if isinstance(typed, msgspec.Struct):
        names = zip(typed.__struct_fields__, typed.__struct_encode_fields__, strict=True)
        for name, key in names:
            value = getattr(typed, name)
            if (kept := _restore_integers(value, sent.get(key))) is not value:
                msgspec.structs.force_setattr(typed, name, kept)
    elif isinstance(typed, dict):
        typed.update({key: _restore_integers(value, sent.get(key)) for key, value in typed.items()})
    elif isinstance(typed, list):
        typed[:] = [_restore_integers(value, raw) for value, raw in zip(typed, sent, strict=True)]
    elif isinstance(typed, tuple):
        return tuple(_restore_integers(value, raw) for value, raw in zip(typed, sent, strict=True))
    return typed
