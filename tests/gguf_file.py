"""GGUF files that tests write byte by byte: a header with values and tensors, and no weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def write_gguf(
    path: Path, values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
) -> Path:
    """Write texts, uint32 and lists of them; 4 kB of weights follow, which nothing reads.

    Shapes have the fastest dimension first.
    """
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        if isinstance(value, list):
            raw += _text(name) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
            continue
        is_text = isinstance(value, str)
        raw += _text(name) + struct.pack("<I", 8 if is_text else 4)
        raw += _text(value) if is_text else struct.pack("<I", value)
    for name, shape in tensors.items():
        raw += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        raw += struct.pack("<IQ", 2, 0)
    path.write_bytes(raw + bytes(4096))
    return path
