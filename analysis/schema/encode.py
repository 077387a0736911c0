"""Any value of a report as JSON: in, structs and plain values; out, indented UTF-8 bytes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

# JSON itself escapes the controls below a space; terminals obey these too.
OBEYED = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def json_bytes(value: Any) -> bytes:
    """Indented UTF-8 JSON in which no character moves the cursor or turns the text around."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    return OBEYED.sub(lambda m: f"\\u{ord(m[0]):04x}", text).encode()
