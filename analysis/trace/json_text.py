"""The text of a Chrome trace, looked at without decoding it: where its strings, brackets and list
of events are, and what makes invalid JSON readable. In and out: bytes.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

_HEAD = re.compile(rb'"traceEvents"\s*:\s*')
BOUNDARY = re.compile(rb"\}\s*,\s*\{")  # between two events, or two objects in one
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# Up to the next bracket outside of strings; group 1 is a quote where a string does not end.
STEP = re.compile(rb'[^"{}\[\]]*+(?:' + _STRING + rb'[^"{}\[\]]*+)*+(?:([{}\[\]"])|\Z)', re.DOTALL)
_NOT_A_NUMBER = re.compile(_STRING + rb"|-?(?:NaN|Infinity)\b", re.DOTALL)
_CONTROL = bytes.maketrans(bytes(range(32)), b" " * 32)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def place_of_events(text: bytes) -> int | None:
    """Where the value of the outermost object's `traceEvents` begins; None where it has none."""
    depth, end = 0, 0
    for match in STEP.finditer(text):
        if depth == 1 and (found := _HEAD.search(text, end, match.end())):
            return found.end()
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        end = match.end()
    return None


def end_of_object(text: bytes) -> int | None:
    """Where the object ends whose events have been read; None where it does not."""
    depth = 1
    for match in STEP.finditer(text):
        if match.group(1) == b'"':  # a string that goes on in the next block
            return None
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(match.group(1), 0)
        if depth == 0:
            return match.end()
    return None


def mended(text: bytes) -> bytes:
    """The text without control characters, NaN, infinities and bytes that are no UTF-8."""
    plain = text.translate(_CONTROL)
    if b"NaN" in plain or b"Infinity" in plain:
        plain = _NOT_A_NUMBER.sub(lambda m: m[0] if m[0][:1] == b'"' else b"null", plain)
    return plain.decode("utf-8", "replace").encode()


def plain_object(text: bytes) -> dict[str, Any] | None:
    """Metadata as plain values; None where it cannot be read."""
    try:
        plain = msgspec.json.decode(mended(text))
    except UNREADABLE:
        return None
    return plain if isinstance(plain, dict) else None
