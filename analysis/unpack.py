"""The decompressed bytes of a trace file, block by block.

In: a .json, .json.gz or .zip file, told apart by its first bytes, not its name. Out: `Stream`: the
bytes, and whether the file ends before its compressed data does.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from taxonomy.errors import PrunescopeError

# What zipfile raises on a damaged, encrypted or forged archive.
_BAD_ZIP = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error, zlib.error,
            lzma.LZMAError)  # fmt: skip


class Stream(Protocol):
    """Bytes to be read in blocks. `cut`: they end before the compressed data does."""

    cut: bool

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""


class Inflate:
    """A gzip stream read block by block; a cut or broken one gives all that stands before."""

    def __init__(self, file: IO[bytes] | Stream) -> None:
        self.file = file
        self.stream = zlib.decompressobj(31)
        self.pending = b""
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        while not self.cut:
            if not self.pending:
                self.pending = self.file.read(256 << 10)
            if not self.pending:
                self.cut = not self.stream.eof
                return b""
            if self.stream.eof:
                if len(self.pending) < 2:
                    self.pending += self.file.read(256 << 10)
                if not self.pending.startswith(b"\x1f\x8b"):
                    return b""
                self.stream = zlib.decompressobj(31)
            try:
                block = self.stream.decompress(self.pending, size)
            except zlib.error:
                self.cut = True
                return b""
            self.pending = self.stream.unconsumed_tail or self.stream.unused_data
            if block:
                return block
        return b""


class Plain:
    """A stream that needs no inflating, or that zipfile inflates."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.cut = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end, or where the rest is broken."""
        try:
            return self.file.read(size)
        except _BAD_ZIP:
            self.cut = True
            return b""


def unpacked(path: Path, file: BinaryIO) -> Stream:
    """The decompressed bytes of an open file. Raises PrunescopeError on a zip that is no trace."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return Inflate(file)
    return _zipped(path, file) if magic == b"PK\x03\x04" else Plain(file)


def _zipped(path: Path, file: BinaryIO) -> Stream:
    hint = "give a .zip with one Chrome trace (.json or .json.gz) in it"
    try:
        archive = zipfile.ZipFile(file)
        names = [n for n in archive.namelist() if n.endswith((".json", ".json.gz"))]
        if len(names) != 1:
            raise PrunescopeError(f"{path.name} holds {len(names)} traces, not one", hint=hint)
        member = archive.open(names[0])
    except _BAD_ZIP as error:
        raise PrunescopeError(f"{path.name} is no readable zip ({error})", hint=hint) from None
    return Inflate(Plain(member)) if names[0].endswith(".gz") else Plain(member)
