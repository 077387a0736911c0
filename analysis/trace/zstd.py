"""A Zstandard stream, read block by block. In: packed bytes. Out: unpacked ones, and whether the
file ends before its data does. Needs Python 3.14 or the package `zstandard`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import IO, Any, Protocol

from prunescope.taxonomy.errors import PrunescopeError

ZSTD_MAGIC = b"(\xb5/\xfd"
# Packed bytes at a time: a block of 4 bytes unpacks to 128 KiB at most, so 32 MiB of them at once.
_STEP = 1 << 10
_MAX_WINDOW = 1 << 27  # bytes of memory, as the command `zstd` allows unasked


class _Readable(Protocol):
    def read(self, size: int) -> bytes: ...


class Unzstd:
    """A Zstandard stream read block by block; a cut or broken one gives all that stands before.

    Raises PrunescopeError where nothing here can unpack it.
    """

    def __init__(self, file: IO[bytes] | _Readable) -> None:
        self.file = file
        self.new, self.broken = _library()
        self.stream = self.new()
        self.packed = self.ready = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        parts = [self.ready]
        have = len(self.ready)
        while have < size and not self.cut:
            if not self.packed:
                self.packed = self.file.read(256 << 10)
            if not self.packed:
                self.cut = not self.stream.eof
                break
            if self.stream.eof:
                self.stream = self.new()
            try:
                parts.append(self.stream.decompress(self.packed[:_STEP]))
            except self.broken:
                self.cut = True
                break
            self.packed = self.stream.unused_data + self.packed[_STEP:]
            have += len(parts[-1])
        ready = b"".join(parts)
        self.ready = ready[size:]
        return ready[:size]


def _library() -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor, and what it raises on broken data."""
    try:
        zstd: Any = importlib.import_module("compression.zstd")
    except ModuleNotFoundError:
        pass
    else:
        limits = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW.bit_length() - 1}
        return lambda: zstd.ZstdDecompressor(options=limits), zstd.ZstdError
    try:
        library: Any = importlib.import_module("zstandard")
    except ModuleNotFoundError:
        raise PrunescopeError(
            "a trace packed with zstd needs the package zstandard",
            hint="pip install zstandard, or unpack it with `unzstd` first",
        ) from None
    made = library.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    return made.decompressobj, library.ZstdError
